"""Plans of the miniature on a real GPU: what the fakes promise. Skipped where there is none of either."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from refdiff.accuracy.tolerances import graph_tolerance
from refdiff.contracts.bundle import Bundle
from refdiff.contracts.graphs import graph_contract
from refdiff.contracts.inspection import find_bundle
from refdiff.contracts.parity import measure_parity, select_recorded
from refdiff.engines import build
from refdiff.engines.trt.device import find_device
from refdiff.engines.trt.flavour import load_flavour
from refdiff.engines.trt.latency_race import LatencyRace
from refdiff.engines.trt.open import load_environment, open_plans
from refdiff.engines.trt.sessions import TrtSessions
from refdiff.errors import MissingDependencyError

pytestmark = [
    pytest.mark.needs_gpu,
    pytest.mark.slow,
    pytest.mark.skipif(find_device() is None, reason="no NVIDIA GPU, or no driver"),
]

GRAPHS = ("sd_text", "sam_encoder", "sam_decoder")


@pytest.fixture(scope="module", params=["tensorrt", "tensorrt-rtx"])
def flavour(request: pytest.FixtureRequest) -> str:
    try:
        load_flavour(request.param)
    except MissingDependencyError as error:
        pytest.skip(str(error))
    return str(request.param)


@pytest.fixture(scope="module")
def bundle(flavour: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    """The built-in bundle, its plans in a folder of this test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        build.build("mini", flavour=flavour, graphs=GRAPHS)
        yield find_bundle("mini")


@pytest.fixture
def sessions(bundle: Bundle, flavour: str) -> Iterator[TrtSessions]:
    opened = open_plans(bundle, flavour, reason="a test")
    yield opened
    opened.close()


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_graph_is_within_its_gates_plain_captured_and_replayed(
    sessions: TrtSessions, bundle: Bundle, graph: str
) -> None:
    feeds, recorded = bundle.golden()[graph]
    limits, session = graph_tolerance("fp32", graph), sessions.open(graph)
    for _ in range(4):
        outputs = session.run(feeds)
        for name, record in recorded.items():
            measured = measure_parity(select_recorded(outputs[name], record), record)
            assert measured.error <= limits.error
            assert measured.correlation >= limits.correlation
    assert session.cuda_graph.is_captured or session.cuda_graph.refusal


def test_the_embedding_left_on_the_device_gives_what_the_copied_one_gives(
    sessions: TrtSessions, bundle: Bundle
) -> None:
    golden = bundle.golden()
    encoder, decoder = sessions.open("sam_encoder"), sessions.open("sam_decoder")
    prompts = golden["sam_decoder"][0]["prompts"]
    kept = encoder.run(golden["sam_encoder"][0], keep_on_device=True)["embedding"]
    chained = decoder.run({"embedding": kept, "prompts": prompts})
    copied = decoder.run({"embedding": kept.to_host(), "prompts": prompts})
    for name, values in chained.items():
        np.testing.assert_array_equal(values, copied[name])


@pytest.mark.parametrize("memory", ["shared", "staged"])
def test_plans_held_in_less_memory_give_the_same(
    sessions: TrtSessions, bundle: Bundle, flavour: str, memory: str
) -> None:
    golden, tight = bundle.golden(), open_plans(bundle, flavour, reason="a test", memory=memory)
    for _ in range(2):
        for graph in GRAPHS:
            expected = sessions.open(graph).run(golden[graph][0])
            for name, values in tight.open(graph).run(golden[graph][0]).items():
                np.testing.assert_allclose(values, expected[name], rtol=1e-3, atol=1e-3)
    tight.close()


def test_a_graph_is_as_fast_as_itself(bundle: Bundle, flavour: str, tmp_path: Path) -> None:
    trt, cuda, device = load_environment(flavour)
    assert device is not None
    clock = LatencyRace(trt, cuda, device, lambda line: None)
    forms = {name: bundle.graph_path("unet") for name in ("one", "other")}
    graph = graph_contract(bundle.spec)["unet"]
    times = clock.medians_ms(graph, forms, bundle.golden()["unet"][0], scratch=tmp_path)
    assert 0.5 < times["one"] / times["other"] < 2.0
