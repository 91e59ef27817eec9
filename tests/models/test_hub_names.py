"""Names on the hub, and which files of a repository are fetched."""

from pathlib import Path

import pytest

from refdiff.errors import InputError
from refdiff.models.hub.names import HubName, choose_files, entry_of, parse_hub_name
from refdiff.models.presets import PRESETS
from tests.support.hub_repos import FILES, NEEDED, SD, SD_WEIGHTS, SHARDS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/b", HubName(repo="a/b")),
        ("a/b@v1.0", HubName(repo="a/b", revision="v1.0")),
        ("a/b@refs/pr/1", HubName(repo="a/b", revision="refs/pr/1")),
        ("a/b/c.safetensors", HubName(repo="a/b", file="c.safetensors")),
        ("a/b/d/c.ckpt@main", HubName(repo="a/b", file="d/c.ckpt", revision="main")),
    ],
)
def test_a_name_on_the_hub_is_read(text: str, expected: HubName) -> None:
    assert parse_hub_name(text) == expected
    assert expected.text == text


@pytest.mark.parametrize(
    "text", ["a", "/a/b", "./a/b", "../a/b", "a/../b", "a/b/../c", "a\\b", "a/b/", "a/b@../c", "", "~/a/b"]
)
def test_what_is_no_name_on_the_hub_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_hub_name(text)


def test_of_a_diffusers_folder_one_set_of_weights_is_chosen_safe_and_full_before_the_rest() -> None:
    stem = "diffusion_pytorch_model"
    names = {
        *SD,
        *(f"vae/{stem}{end}" for end in (".safetensors", ".fp16.safetensors", ".bin")),
        *("text_encoder/pytorch_model.bin", "text_encoder/model.fp16.safetensors"),
        *(f"unet/{stem}-0000{n}-of-00002.safetensors" for n in (1, 2)),
        *(f"unet/{stem}.safetensors.index.json", f"unet/{stem}.fp16.safetensors"),
        *("safety_checker/model.safetensors", "safety_checker/config.json", "v1-5-pruned.safetensors"),
    }
    assert set(choose_files(names, "a/b")) == {
        *SD,
        f"vae/{stem}.safetensors",
        "text_encoder/pytorch_model.bin",  # full precision is worth more than safetensors
        f"unet/{stem}.safetensors.index.json",
        *(f"unet/{stem}-0000{n}-of-00002.safetensors" for n in (1, 2)),
    }


def test_a_diffusers_folder_without_a_part_is_refused() -> None:
    with pytest.raises(InputError, match=r"lacks weights, one of text_encoder/model\.safetensors"):
        choose_files({*SD}, "a/b")


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ({"scheduler/scheduler_config.json"}, r"lacks scheduler/scheduler_config\.json"),
        (
            {"tokenizer/tokenizer_config.json"},
            r"lacks tokenizer/tokenizer_config\.json or tokenizer/special_tokens_map\.json",
        ),
        ({"vae/config.json"}, r"lacks vae/config\.json"),
    ],
)
def test_a_diffusers_repository_without_what_the_loader_reads_is_refused(
    gone: set[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        choose_files({*SD, *SD_WEIGHTS} - gone, "a/b")


def test_one_shard_without_its_index_is_no_checkpoint() -> None:
    with pytest.raises(InputError, match="holds no checkpoint"):
        choose_files({"config.json", SHARDS[0]}, "a/b")


def test_pickles_are_chosen_only_where_there_is_nothing_else() -> None:
    assert choose_files({"config.json", "pytorch_model.bin"}, "a/b") == ("config.json", "pytorch_model.bin")
    assert choose_files(FILES, "a/b") == NEEDED
    assert choose_files({"x.ckpt", "x.safetensors", "sub/y.safetensors"}, "a/b") == ("x.safetensors",)


def test_several_single_checkpoints_need_a_choice() -> None:
    with pytest.raises(InputError, match=r"x\.ckpt, y\.ckpt; name one, as in a/b/x\.ckpt"):
        choose_files({"x.ckpt", "y.ckpt"}, "a/b")
    with pytest.raises(InputError, match="holds no checkpoint"):
        choose_files({"README.md"}, "a/b")


def test_a_lone_checkpoint_is_loaded_as_a_file_and_the_rest_as_a_folder() -> None:
    assert entry_of(Path("d"), ["x.ckpt"]) == Path("d/x.ckpt")
    assert entry_of(Path("d"), ["model.safetensors"]) == Path("d")
    assert entry_of(Path("d"), NEEDED) == Path("d")


def test_a_preset_s_files_are_what_would_be_chosen_of_its_repositories() -> None:
    for preset in PRESETS.values():
        for source in (each for each in preset.sources if each.files):
            assert set(choose_files(source.files, source.repo)) == set(source.files)
            other = source.files_of(non_ema=True)
            assert set(choose_files(other, source.repo, non_ema=True)) == set(other)
