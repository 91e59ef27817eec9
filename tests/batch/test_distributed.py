"""Work spread over a Ray cluster, with a stand-in for Ray; `test_ray_cluster` has the real one."""

import sys

import pytest
from PIL import Image

from refdiff.batch import distributed
from refdiff.batch.distributed import RayOptions, count_workers, import_ray, map_on_ray
from refdiff.batch.folder import FolderOptions, segment_many
from refdiff.cli import main
from refdiff.contracts.options import RunOptions
from refdiff.data.synthetic import RenderedScenes
from refdiff.errors import EngineError, InputError, MissingDependencyError
from refdiff.evaluation.evaluate import evaluate
from refdiff.miniature.scenes import render_scene
from tests.support.fake_ray import fake_ray

GEN = RunOptions(mode="gen")
TWO_NODES = ({"CPU": 1.0}, {"CPU": 1.0})
LOCAL = RayOptions(address="local")


@pytest.fixture
def install(monkeypatch):
    """Install a stand-in for Ray."""

    def install(*nodes, **given):
        ray, data = fake_ray(nodes or TWO_NODES, **given)
        monkeypatch.setitem(sys.modules, "ray", ray)
        monkeypatch.setitem(sys.modules, "ray.data", data)
        return ray

    return install


def double():
    """Open a worker that doubles numbers, and refuses 13."""

    def work(number):
        if number == 13:
            raise InputError("13 is unlucky")
        if number == 14:
            raise ZeroDivisionError
        return 2 * number

    return work


def spread(items, where=LOCAL, backend="ort-cpu"):
    said = []
    return list(map_on_ray(items, double, where, backend=backend, report=said.append)), said


def test_each_item_has_one_result_and_the_cluster_is_left(install):
    ray = install()
    assert sorted(spread(range(5))[0]) == [0, 2, 4, 6, 8]
    assert ray.actors == [(2, 1.0, None)]
    assert ray.connected == ["local", None]


def test_what_was_lost_is_handed_out_again_and_what_was_taken_is_not(install):
    ray = install(losses=[2, 0, 1])
    results, said = spread(range(5))
    assert sorted(results) == [0, 2, 4, 6, 8]
    assert [count for count, *_ in ray.actors] == [2, 1, 1, 1]
    assert "3 images are handed out again (The actor died because its node has died" in said[0]


def test_losses_without_any_result_between_them_end_the_run(install):
    install(losses=[1, 0, 0, 0])
    with pytest.raises(EngineError, match="lost again and again"):
        spread(range(5))


def test_workers_take_gpus_where_the_back_end_does(install):
    ray = install({"CPU": 8.0, "GPU": 2.0})
    spread([1], backend="ort-cuda")
    assert ray.actors == [(2, 1.0, 1.0)]


@pytest.mark.parametrize(
    ("needs", "asked", "room"),
    [
        ({"CPU": 1.0}, None, 9),
        ({"CPU": 4.0}, None, 2),
        ({"CPU": 4.0}, 1, 1),
        ({"CPU": 1.0, "GPU": 1.0}, None, 1),
    ],
)
def test_a_worker_fits_into_one_node(needs, asked, room):
    assert count_workers([{"CPU": 8, "GPU": 1}, {"CPU": 1, "GPU": 0}], needs, asked) == room


@pytest.mark.parametrize(
    ("nodes", "where", "backend", "given", "said"),
    [
        (TWO_NODES, RayOptions(address="auto", cpus=2), "ort-cpu", {}, "room for 0 workers of 2 CPU"),
        (TWO_NODES, RayOptions(address="auto", workers=3), "ort-cpu", {}, "room for 2 workers"),
        (TWO_NODES, LOCAL, "ort-cuda", {}, "room for 0 workers of 1 CPU and 1 GPU"),
        (TWO_NODES, LOCAL, "ort-cpu", {"free": {"CPU": 0.5}}, "taken by other work: 0.5 CPU free"),
        (TWO_NODES, RayOptions(address="auto", workers=0), "ort-cpu", {}, "got 0 workers"),
    ],
)
def test_a_run_that_ray_would_let_wait_for_ever_is_refused(install, nodes, where, backend, given, said):
    ray = install(*nodes, **given)
    with pytest.raises(InputError, match=said):
        spread([1], where, backend)
    assert ray.actors == []


def test_an_error_of_a_worker_names_its_node(install):
    install()
    with pytest.raises(InputError, match=r"13 is unlucky \(on node "):
        spread([13])
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        spread([14])


def test_a_cluster_that_cannot_be_reached_is_named(install):
    def refuse(**_):
        raise ConnectionError("no answer")

    install().init = refuse
    with pytest.raises(InputError, match="the Ray cluster local cannot be used"):
        spread([1])


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"pip install '.\[ray\]'"):
        import_ray()


def test_reports_of_use_are_off_before_ray_is_imported(tmp_path, monkeypatch):
    """A stand-in on the path records its environment when it is imported."""
    folder = tmp_path / "ray"
    folder.mkdir()
    (folder / "__init__.py").write_text("import os\nSEEN = dict(os.environ)\n")
    (folder / "data.py").write_text("import os\nSEEN = dict(os.environ)\n")
    for name in [each for each in sys.modules if each == "ray" or each.startswith("ray.")]:
        monkeypatch.delitem(sys.modules, name)
    for name in distributed.NO_REPORTS:
        monkeypatch.setenv(name, "1")
    monkeypatch.syspath_prepend(tmp_path)
    ray = import_ray()
    off = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_USAGE_DISABLED": "1"}
    assert off.items() <= ray.SEEN.items()
    assert off.items() <= ray.data.SEEN.items()
    for name in ("ray", "ray.data"):  # monkeypatch would put the stand-in back at the end
        sys.modules.pop(name)


@pytest.mark.slow
def test_an_evaluation_on_ray_has_the_records_of_one_process(install, mini_bundle, tmp_path):
    scenes = RenderedScenes(count=3)
    one = evaluate(mini_bundle, scenes, options=GEN)
    install(losses=[1])
    said = []
    out = tmp_path / "run"
    many = evaluate(mini_bundle, scenes, options=GEN, jobs=LOCAL, output=out, progress=said.append)
    assert many.records == one.records
    assert len((out / "records.jsonl").read_text().splitlines()) == 3
    assert "2 images are handed out again" in said[0]


def test_a_node_with_another_bundle_is_refused(install, mini_bundle, tmp_path):
    from refdiff.contracts.options import BackendOptions
    from refdiff.evaluation.answering import EvaluatedModel, answer_all, find_model, model_settings

    install()
    model = EvaluatedModel(bundle=str(mini_bundle), runtime="onnx", options=GEN, backend=BackendOptions())
    bundle = find_model(model)
    settings = {**model_settings(model, "ort-cpu", bundle), "bundle_sha256": "0" * 64}
    pictures = [(sample,) for sample in RenderedScenes(count=1)]
    with pytest.raises(InputError, match="another bundle_sha256 there"):
        list(answer_all(model, bundle, pictures, LOCAL, settings, lambda step: None))


@pytest.mark.slow
def test_a_folder_on_ray_has_the_files_of_one_process(install, mini_bundle, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for seed in range(2):
        Image.fromarray(render_scene(seed).image).save(pictures / f"{seed}.png")
    (pictures / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")

    def run(name, ray, phrases=("the mug", "the book")):
        folder = FolderOptions(ray=ray)
        return segment_many(
            mini_bundle, pictures, phrases, output=tmp_path / name, folder=folder, options=GEN
        )

    one = run("one", None)
    install()
    many = run("many", LOCAL, phrases=("the mug",))
    assert many.answered == 2
    many = run("many", LOCAL)
    assert (many.answered, many.resumed, many.failed) == (2, 2, 2)
    assert many.failures == one.failures
    for kind in ("masks", "overlays", "thumbnails"):
        files = {path.name: path.read_bytes() for path in (tmp_path / "one" / kind).iterdir()}
        assert files == {path.name: path.read_bytes() for path in (tmp_path / "many" / kind).iterdir()}


def test_ray_is_for_a_folder(mini_bundle, tmp_path, capsys):
    picture = tmp_path / "one.png"
    Image.fromarray(render_scene(0).image).save(picture)
    assert main(["segment", str(mini_bundle), str(picture), "the mug", "--ray", "local"]) == 2
    assert "--ray is for a folder" in capsys.readouterr().err
    assert main(["segment", str(mini_bundle), str(picture), "the mug", "the book", "--ray", "local"]) == 2
    assert "--ray is for an output folder" in capsys.readouterr().err
