"""Plans behind the factory: which are taken, how they are held, what is chosen and what is refused."""

import sys
from pathlib import Path

import numpy as np
import pytest

from refdiff.contracts.bundle import Bundle
from refdiff.contracts.options import Options, ProposalOptions
from refdiff.engines import factory
from refdiff.engines.trt.plans import find_plans
from refdiff.errors import BundleError, EngineError, InputError, MissingDependencyError
from refdiff.runtime.proposals import MaskProposer
from tests.support.fake_cuda import Error
from tests.support.plan_bundle import GPU, GRAPHS, SPEC, Machine, feeds_of, write_bundle, write_plan
from tests.support.prompts import readable_vectors


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    bundle = write_bundle(tmp_path / "bundle")
    for name in GRAPHS:
        write_plan(bundle, name)
    return bundle


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_a_graph_is_loaded_when_it_is_opened_and_kept(bundle: Bundle, machine: Machine) -> None:
    sessions = machine.sessions(bundle)
    assert (sessions.backend, sessions.reason, machine.cuda.used) == ("tensorrt", "a test", 0)
    unet = sessions.open("unet")
    assert sessions.open("unet") is unet
    assert machine.trt.loads == 1
    assert unet.run(feeds_of("unet"))["eps"].shape == (1, 1, 4, 4)
    sessions.close()
    sessions.close()
    assert machine.cuda.is_clean
    assert machine.trt.loaded == 0


def test_a_session_that_failed_is_opened_again(bundle: Bundle, machine: Machine) -> None:
    sessions = machine.sessions(bundle)
    machine.trt.fail = "run"
    with pytest.raises(EngineError, match="kernel went away"):
        sessions.open("unet").run(feeds_of("unet"))
    machine.trt.fail = None
    assert sessions.open("unet").run(feeds_of("unet"), ["eps"])
    sessions.close()
    assert machine.cuda.is_clean


@pytest.mark.parametrize("rtx", [False, True])
def test_staged_plans_take_turns_and_give_the_same(tmp_path: Path, rtx: bool) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    machine = Machine(rtx=rtx)
    for name in GRAPHS:
        write_plan(bundle, name, flavour=machine.flavour.name, version=machine.flavour.version)
    sessions = machine.sessions(bundle, memory="staged")
    encoder, decoder = sessions.open("sam_encoder"), sessions.open("sam_decoder")
    for _ in range(2):
        kept = encoder.run(feeds_of("sam_encoder"), keep_on_device=True)["embedding"]
        assert (encoder.is_loaded, decoder.is_loaded) == (True, False)
        found = decoder.run({**feeds_of("sam_decoder"), "embedding": kept}, ["iou"])["iou"]
        assert (encoder.is_loaded, decoder.is_loaded) == (False, True)
        assert found[0, 0] == 192.0 * 8 + 4  # 8 values of 192 each, two tokens of two ones
    assert machine.trt.loaded == 1
    assert machine.trt.loads == 4
    sessions.close()
    assert machine.cuda.is_clean


def test_the_budget_decides_how_plans_are_held(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    for name in GRAPHS:
        write_plan(bundle, name, activations=1_000_000, padding=2_000_000)
    held = {}
    for memory in ("30MB", "15MB", "7MB"):
        machine = Machine()
        sessions = machine.sessions(bundle, memory=memory)
        for name in GRAPHS:
            sessions.open(name).run(feeds_of(name))
        held[memory] = sessions.memory.holding, machine.trt.loaded
        sessions.close()
        assert machine.cuda.is_clean
    assert held == {"30MB": ("resident", 4), "15MB": ("shared", 4), "7MB": ("staged", 1)}


def test_too_little_memory_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    write_plan(bundle, "unet", activations=1_000_000)
    machine = Machine()
    sessions = machine.sessions(bundle, memory="1MB")
    with pytest.raises(EngineError, match=r"1MB may be used, they take: resident 4\.1MB.*--memory 4\.1MB"):
        sessions.open("unet")
    assert (machine.trt.loads, machine.cuda.used) == (0, 0)
    sessions.close()
    assert machine.cuda.is_clean


def test_a_plan_that_was_changed_since_it_was_found_is_not_loaded(bundle: Bundle, machine: Machine) -> None:
    plan = write_plan(bundle, "unet")
    sessions = machine.sessions(bundle)
    plan.write_bytes(plan.read_bytes().replace(b"1000", b"1001"))
    with pytest.raises(EngineError, match="is not the plan that was built: got sha256"):
        sessions.open("unet")
    assert machine.trt.loads == 0
    sessions.close()
    assert machine.cuda.is_clean


def test_a_graph_without_a_plan_is_distinguished_from_one_the_bundle_lacks(
    tmp_path: Path, machine: Machine
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    write_plan(bundle, "unet")
    sessions = machine.sessions(bundle)
    with pytest.raises(
        EngineError, match="no plan of sam_encoder for tensorrt; build it with: refdiff build"
    ):
        sessions.open("sam_encoder")
    with pytest.raises(BundleError, match="no graph 'clip_text'"):
        sessions.open("clip_text")
    sessions.close()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "10.4.0"}, r"was built with tensorrt 10\.4\.0, this is 10\.3\.0"),
        ({"targets": ("8.7",)}, r"for compute capability 8\.7, this Fake 8\.6 is 8\.6"),
        ({"onnx_sha256": "0"}, r"from another unet\.onnx"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_by_what_does_not_fit(
    tmp_path: Path, machine: Machine, changes: dict, message: str
) -> None:
    bundle = write_bundle(tmp_path / "bundle", ["unet"])
    write_plan(bundle, "unet", **changes)
    found, refused = find_plans(bundle, machine.flavour, GPU)
    assert not found
    with pytest.raises(EngineError, match=message):
        raise EngineError(refused["unet"])


def test_what_one_graph_of_sam_hands_the_next_stays_on_the_device(bundle: Bundle, machine: Machine) -> None:
    sessions = machine.sessions(bundle)
    options = Options(proposals=ProposalOptions(points_per_side=12, pred_iou_threshold=0.0))
    MaskProposer(sessions, SPEC.sam, readable_vectors(SPEC.sam), options).encode(
        np.zeros((6, 8, 3), np.uint8)
    )
    # 64, 64 and 16 of 144 points, the masks of at most 16 at a time: the embedding, features and tokens.
    assert machine.cuda.count("copy across") == 3 + 2 * (4 + 4 + 1)
    assert machine.cuda.count("copy out") == 3 + (4 + 4 + 1)  # predicted IoU, and masks
    sessions.close()


def test_an_embedding_on_the_device_that_is_not_finite_is_blamed_on_the_encoder(
    bundle: Bundle, machine: Machine
) -> None:
    sessions = machine.sessions(bundle)
    machine.trt.fill = float("nan")
    with pytest.raises(EngineError, match="sam_encoder returned values that are not finite"):
        MaskProposer(sessions, SPEC.sam, readable_vectors(SPEC.sam), Options()).encode(
            np.zeros((6, 8, 3), np.uint8)
        )
    sessions.close()


def test_auto_takes_plans_that_fit_and_says_so(
    bundle: Bundle, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.put_in_place(monkeypatch)
    sessions = factory.open_sessions(bundle, memory="1GB", has_driver=lambda: True)
    assert (sessions.backend, sessions.reason) == (
        "tensorrt",
        "the bundle's plans fit this GPU and TensorRT",
    )
    sessions.close()


@pytest.mark.parametrize(
    ("driver", "plans", "reason"),
    [
        (False, GRAPHS, "; its plans (tensorrt) need an NVIDIA driver"),
        (True, (), "; no plans (refdiff build "),
        (True, GRAPHS[:2], "; plans not used: "),
        (False, (), ""),
    ],
)
def test_auto_without_plans_that_fit_says_why_it_took_something_else(
    tmp_path: Path,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    driver: bool,
    plans: tuple[str, ...],
    reason: str,
) -> None:
    pytest.importorskip("onnxruntime")
    bundle = write_bundle(tmp_path / "bundle")
    for name in plans:
        write_plan(bundle, name)
    machine.put_in_place(monkeypatch)
    sessions = factory.open_sessions(bundle, has_driver=lambda: driver)
    assert sessions.backend.startswith("ort-")
    assert reason in sessions.reason
    assert bool(reason) == (";" in sessions.reason)
    sessions.close()
    with pytest.raises(InputError, match="memory '8GB' is for plans"):
        factory.open_sessions(bundle, memory="8GB", has_driver=lambda: driver)


def test_a_tensorrt_back_end_without_plans_names_the_command(
    tmp_path: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    machine.put_in_place(monkeypatch)
    with pytest.raises(EngineError, match=r"no plans for tensorrt; .* refdiff build .* --flavour tensorrt"):
        factory.open_sessions(bundle, backend="tensorrt")
    write_plan(bundle, "unet", version="9.0")
    with pytest.raises(EngineError, match=r"was built with tensorrt 9\.0"):
        factory.open_sessions(bundle, backend="tensorrt")


def test_memory_that_means_nothing_is_refused(
    bundle: Bundle, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.put_in_place(monkeypatch)
    with pytest.raises(InputError, match="got memory 'plenty'"):
        factory.open_sessions(bundle, backend="tensorrt", memory="plenty")


def test_a_machine_without_a_driver_is_a_missing_dependency(
    bundle: Bundle, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.put_in_place(monkeypatch)
    machine.cuda.fail["cudaGetDeviceCount"] = Error.cudaErrorInsufficientDriver
    with pytest.raises(MissingDependencyError, match="update the driver, or use --backend ort-cpu"):
        factory.open_sessions(bundle, backend="tensorrt")


def test_cuda_python_that_is_not_installed_names_its_extra(
    bundle: Bundle, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.put_in_place(monkeypatch)
    for package in ("cuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=r"needs cuda-python.*\[trt\]"):
        factory.open_sessions(bundle, backend="tensorrt")


def test_cuda_python_that_is_broken_keeps_its_traceback(
    bundle: Bundle, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        @property
        def runtime(self) -> None:
            raise ModuleNotFoundError("No module named 'cuda.broken'", name="cuda.broken")

    machine.put_in_place(monkeypatch)
    monkeypatch.setitem(sys.modules, "cuda.bindings", Broken())
    with pytest.raises(ModuleNotFoundError, match=r"cuda\.broken"):
        factory.open_sessions(bundle, backend="tensorrt")


def test_a_session_says_how_many_rows_its_plan_takes_at_once(bundle: Bundle, machine: Machine) -> None:
    sessions = machine.sessions(bundle)
    unet = sessions.open("unet")
    assert unet.max_batch == 2
    unet.run(feeds_of("unet", batch=2))
    with pytest.raises(EngineError, match="was built for"):
        unet.run(feeds_of("unet", batch=3))
    assert sessions.open("sam_decoder").max_batch is None
    sessions.close()
