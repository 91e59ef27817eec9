"""Two records side by side: what is noise, what is a regression, and what cannot be compared."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refdiff.cli import main
from refdiff.errors import GateError, InputError
from refdiff.profiling.comparison import compare, compare_profiles, noise_of
from refdiff.profiling.records import read_record


def record(
    scale: dict[str, float] | None = None, *, seed: int = 0, rounds: int = 20, spread: float = 0.02
) -> dict:
    """A document as `refdiff profile --json` prints it, its parts drawn around fixed times."""
    rng, scale = np.random.default_rng(seed), scale or {}
    times = {"proposals/sam_encoder": 40.0, "proposals/host": 10.0, "crops/clip_image": 20.0}
    samples = []
    for number in range(rounds):
        for picture in range(2):
            parts = {
                part: ms * scale.get(part, 1.0) * float(1 + spread * rng.normal())
                for part, ms in times.items()
            }
            samples.append({"round": number, "picture": picture, "parts": parts, "throttled": []})
    return {
        "kind": "refdiff profile",
        "format": 1,
        "bundle": {"model": "mini", "manifest_sha256": "ab"},
        "options": {"variant": "edge", "threads": 2},
        "machine": {"processor": "one", "cores": 2},
        "peak": {"gflops": 100.0, "rounds": [90.0, 91.0, 92.0]},
        "samples": samples,
    }


def compared(before: dict, after: dict, **options: bool):
    return compare(read_record(before, "a.json"), read_record(after, "b.json"), **options)


def verdicts(comparison) -> dict[str, str]:
    return {change.row: change.verdict for change in comparison.changes}


def test_two_records_of_the_same_work_are_the_same() -> None:
    comparison = compared(record(seed=1), record(seed=2))
    assert set(verdicts(comparison).values()) == {"same"}
    comparison.require()


def test_a_slower_graph_is_named_with_its_stage_and_its_total() -> None:
    comparison = compared(record(seed=1), record({"proposals/sam_encoder": 1.3}, seed=2))
    assert {change.row for change in comparison.slower} == {"all", "proposals", "proposals/sam_encoder"}
    with pytest.raises(GateError, match=r"proposals/sam_encoder 40.* ms -> 5\d.* ms \(\+\d\d"):
        comparison.require()


def test_a_faster_graph_is_no_failure() -> None:
    comparison = compared(record(seed=1), record({"crops/clip_image": 0.5}, seed=2))
    assert verdicts(comparison)["crops/clip_image"] == "faster"
    assert comparison.to_json()["passed"]


def test_the_same_change_is_noise_where_the_records_are_noisy() -> None:
    slower = {"proposals/sam_encoder": 1.1}
    assert compared(record(seed=1), record(slower, seed=2)).slower
    assert not compared(record(seed=1, spread=0.3), record(slower, seed=2, spread=0.3)).slower


def test_what_the_machine_itself_became_slower_by_is_allowed_to_every_row() -> None:
    everything = dict.fromkeys(("proposals/sam_encoder", "proposals/host", "crops/clip_image"), 1.25)
    before, after = record(seed=1), record(everything, seed=2)
    assert "all" in {change.row for change in compared(before, after).slower}
    after["peak"]["rounds"] = [72.0, 73.0, 74.0]
    calmer = compared(before, after)
    assert not calmer.slower
    assert calmer.machine_change == pytest.approx(91 / 73 - 1)


def test_throttled_rounds_are_left_out() -> None:
    before, after = record(seed=1), record(seed=2)
    for sample in after["samples"][:20]:
        sample["parts"] = {part: ms * 9 for part, ms in sample["parts"].items()}
        sample["throttled"] = ["gpu at 300 MHz, 900 at the start"]
    comparison = compared(before, after)
    assert comparison.left_out == (0, 10)
    assert not comparison.slower


def test_a_part_of_one_record_alone_is_reported_and_its_stage_judged() -> None:
    before, after = record(seed=1), record(seed=2)
    for sample in after["samples"]:
        parts = sample["parts"]
        encoder = parts.pop("proposals/sam_encoder")
        sample["parts"] = {**parts, "proposals/sam_heads": encoder * 1.5}
    found = verdicts(compared(before, after))
    assert (found["proposals/sam_encoder"], found["proposals/sam_heads"]) == ("gone", "new")
    assert found["proposals"] == "slower"


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("machine", "processor"), "two", r"machine processor \(one and two\)"),
        (("bundle", "manifest_sha256"), "cd", r"bundle manifest_sha256 \(ab and cd\)"),
        (("options", "threads"), None, r"options threads \(2 and None\)"),
    ],
)
def test_records_of_different_things_are_refused_unless_allowed(path, value, said) -> None:
    before, after = record(seed=1), record(seed=2)
    after[path[0]] = {**after[path[0]], path[1]: value}
    with pytest.raises(InputError, match=said):
        compared(before, after)
    assert len(compared(before, after, allow_different=True).differences) == 1


def test_a_record_that_calls_its_variant_a_profile_is_still_comparable() -> None:
    before, after = record(seed=1), record(seed=2)
    before["options"] = {"threads": 2, "profile": "edge"}
    assert compared(before, after).differences == ()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda d: d.update(kind="something"), "is no profile"),
        (lambda d: d.update(format=2), "format 2, expected 1"),
        (lambda d: d.pop("samples"), "damaged profile"),
        (lambda d: d["samples"][3].pop("parts"), "damaged profile"),
        (lambda d: d["samples"][3]["parts"].update({"proposals/host": "fast"}), "damaged profile"),
        (lambda d: d["samples"][3].update(parts=5), "damaged profile"),
        (lambda d: d.update(peak=None), "damaged profile"),
        (lambda d: d.update(samples=d["samples"][:8]), "has 4 rounds to compare, expected 5"),
        (lambda d: [s.update(throttled=["hot"]) for s in d["samples"][:34]], "17 of 20 were throttled"),
    ],
)
def test_a_document_that_is_no_record_is_refused(spoil, said) -> None:
    document = copy.deepcopy(record())
    spoil(document)
    with pytest.raises(InputError, match=said):
        read_record(document, "a.json")


@pytest.mark.parametrize("document", [None, [], "text", 3, {}])
def test_any_other_json_is_refused(document) -> None:
    with pytest.raises(InputError, match="is no profile"):
        read_record(document, "a.json")


@pytest.mark.slow
@given(st.lists(st.floats(0.1, 1e3), min_size=5, max_size=40))
def test_noise_is_no_larger_than_the_values_spread_and_repeatable(values: list[float]) -> None:
    noise = noise_of(values)
    assert 0 <= noise <= np.ptp(values) + 1e-9
    assert noise == noise_of(values)


def test_what_drifts_is_noisier_than_what_jitters() -> None:
    values = np.linspace(10, 11, 36)
    shuffled = np.random.default_rng(0).permutation(values)
    assert noise_of(list(values)) > 1.5 * noise_of(list(shuffled))


def written(folder: Path, name: str, document: object) -> str:
    path = folder / name
    path.write_text(json.dumps(document))
    return str(path)


def test_the_command_fails_on_a_regression_and_names_it(tmp_path: Path, capsys) -> None:
    before = written(tmp_path, "a.json", record(seed=1))
    after = written(tmp_path, "b.json", record({"crops/clip_image": 2.0}, seed=2))
    assert main(["profile", "--compare", before, after]) == 1
    streams = capsys.readouterr()
    assert "SLOWER" in streams.out
    assert "crops/clip_image" in streams.err
    assert main(["profile", "--compare", after, before, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True


def test_the_command_refuses_what_it_cannot_compare(tmp_path: Path, capsys) -> None:
    good = written(tmp_path, "a.json", record())
    other = written(tmp_path, "b.json", {**record(), "machine": {"processor": "two"}})
    (tmp_path / "torn.json").write_text('{"kind": "refdiff pro')
    for arguments in (
        [good, str(tmp_path / "absent.json")],
        [good, str(tmp_path / "torn.json")],
        [str(tmp_path), good],
        [good, other],
        [good],
        [good, good, "mini"],
        [good, good, "--html", str(tmp_path / "page.html")],
        [good, good, "--layers"],
    ):
        assert main(["profile", "--compare", *arguments]) == 2, arguments
        assert capsys.readouterr().err.count("\n") == 1
    assert main(["profile", "--compare", good, other, "--allow-different"]) == 0
    assert "not alike: machine processor" in capsys.readouterr().out


def test_records_are_compared_from_python_too(tmp_path: Path) -> None:
    same = written(tmp_path, "a.json", record())
    assert not compare_profiles(same, Path(same)).slower
