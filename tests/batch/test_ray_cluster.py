"""A real Ray cluster of several nodes on this machine: same digits, and a node that is lost."""

import importlib.util
import os
import time
from collections import Counter
from threading import Thread

import pytest
from PIL import Image

from refdiff.batch.distributed import RayOptions, import_ray, map_on_ray
from refdiff.batch.folder import FolderOptions, segment_many
from refdiff.contracts.options import RunOptions
from refdiff.data.synthetic import RenderedScenes
from refdiff.evaluation.evaluate import evaluate
from refdiff.miniature.scenes import render_scene

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="no Ray: pip install '.[ray]'"),
    pytest.mark.filterwarnings("ignore"),  # Ray uses names that it has deprecated itself
]

GEN = RunOptions(mode="gen")
NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}


@pytest.fixture(scope="module")
def cluster():
    import_ray()
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    yield cluster
    cluster.shutdown()


def test_a_node_that_is_lost_loses_nothing_and_what_was_taken_is_not_repeated(cluster, tmp_path):
    """Items from the twelfth on wait for the loss: both workers hold one when the node goes."""
    log, gone, taken, lost, kept = tmp_path / "log", tmp_path / "gone", [], [], []
    node = cluster.add_node(**NODE)

    def open_worker():
        def work(number):
            if number >= 12:
                (tmp_path / f"held-{os.getpid()}").touch()
                while not gone.exists():
                    time.sleep(0.05)
            with log.open("a") as stream:
                stream.write(f"{number}\n")
            return number

        return work

    def lose():
        try:
            wait_until(lambda: len(list(tmp_path.glob("held-*"))) == 2)
            kept.extend(taken)
            cluster.remove_node(node)
        finally:
            gone.touch()

    where, loser = RayOptions(address=cluster.address), Thread(target=lose)
    loser.start()
    taken.extend(map_on_ray(range(24), open_worker, where, backend="ort-cpu", report=lost.append))
    loser.join()
    assert sorted(taken) == list(range(24))
    assert "images are handed out again" in str(lost[0])
    computed = Counter(map(int, log.read_text().split()))
    assert not [number for number in kept if computed[number] > 1]


def wait_until(condition):
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise TimeoutError("a minute has passed")


def test_an_evaluation_and_a_folder_have_the_digits_of_one_process(cluster, mini_bundle, tmp_path):
    where = RayOptions(address=cluster.address)
    scenes = RenderedScenes(count=3)
    one = evaluate(mini_bundle, scenes, options=GEN)
    assert evaluate(mini_bundle, scenes, options=GEN, jobs=where).records == one.records
    (tmp_path / "pictures").mkdir()
    Image.fromarray(render_scene(0).image).save(tmp_path / "pictures" / "0.png")
    for name, ray in (("one", None), ("many", where)):
        folder = FolderOptions(ray=ray)
        segment_many(
            mini_bundle,
            tmp_path / "pictures",
            ["the mug"],
            output=tmp_path / name,
            folder=folder,
            options=GEN,
        )
    masks = [
        [path.read_bytes() for path in (tmp_path / name / "masks").iterdir()] for name in ("one", "many")
    ]
    assert masks[0] == masks[1]
