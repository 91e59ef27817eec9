"""Which TensorRT is here and what it can do, asked of its attributes."""

import functools
import sys

import pytest

from refdiff.engines.trt.flavour import FLAVOURS, choose_flavour, load_flavour
from refdiff.errors import EngineError, InputError, MissingDependencyError
from tests.support.fake_builder import fake_flavour, fake_rtx, fake_tensorrt
from tests.support.fake_machine import install_tensorrt


@pytest.fixture
def installed(monkeypatch):
    """Installs fakes and hides what is really installed."""
    return functools.partial(install_tensorrt, monkeypatch)


def test_a_network_is_strongly_typed_where_that_is_a_flag():
    assert fake_flavour(fake_tensorrt()).network_flags() == 1 << 1


def test_a_version_that_knows_nothing_but_strong_types_needs_no_flag():
    newest = fake_tensorrt(
        version="12.0", without=("NetworkDefinitionCreationFlag.STRONGLY_TYPED", "BuilderFlag.FP16")
    )
    assert fake_flavour(newest).network_flags() == 0


def test_a_version_that_may_choose_types_itself_is_refused():
    old = fake_tensorrt(version="8.6", without=("NetworkDefinitionCreationFlag.STRONGLY_TYPED",))
    with pytest.raises(EngineError, match="cannot keep the types"):
        fake_flavour(old).network_flags()


@pytest.mark.parametrize(
    ("module", "able", "unable"),
    [
        (
            fake_tensorrt(),
            ("timing_cache", "refit", "strip_weights", "version_compatible", "hardware_compatible"),
            ("compute_capability", "attention_op"),
        ),
        (
            fake_tensorrt(without=("BuilderFlag.STRIP_PLAN", "HardwareCompatibilityLevel")),
            ("timing_cache", "refit", "version_compatible"),
            ("compute_capability", "strip_weights", "hardware_compatible"),
        ),
        (
            fake_rtx(),
            ("compute_capability", "refit", "strip_weights"),
            ("timing_cache", "version_compatible", "hardware_compatible"),
        ),
    ],
    ids=["tensorrt 10", "tensorrt with less", "rtx"],
)
def test_each_flavour_has_the_options_its_attributes_give_it(module, able, unable):
    flavour = fake_flavour(module)
    assert [option for option in (*able, *unable) if flavour.why_not(option) is not None] == list(unable)


def test_compute_capabilities_are_named_as_people_name_them():
    known = fake_flavour(fake_rtx()).compute_capabilities()
    assert list(known.items()) == [("8.0", "SM80"), ("8.6", "SM86"), ("8.9", "SM89"), ("12.0", "SM120")]
    assert fake_flavour(fake_tensorrt()).compute_capabilities() == {}


def test_only_rtx_builds_without_a_device():
    assert fake_flavour(fake_rtx()).builds_without_device
    assert not fake_flavour(fake_tensorrt()).builds_without_device


def test_an_unknown_flavour_is_misuse():
    with pytest.raises(InputError, match="choose one of: auto, tensorrt, tensorrt-rtx"):
        load_flavour("tensorflow")


@pytest.mark.parametrize("name", FLAVOURS)
def test_a_flavour_that_is_not_installed_names_its_extra(name, installed):
    installed()
    with pytest.raises(MissingDependencyError, match=r"\[(trt|rtx)\]"):
        load_flavour(name)


def test_without_any_tensorrt_every_way_to_get_one_is_named(installed):
    installed()
    with pytest.raises(MissingDependencyError, match=r"JetPack.*\[trt\].*\[rtx\]"):
        choose_flavour(has_device=True)


def test_rtx_is_found_where_only_its_wheels_are_installed(installed):
    wheels = fake_rtx()
    wheels.__name__ = "tensorrt_rtx_bindings"
    installed(wheels)
    assert load_flavour("tensorrt-rtx").module is wheels


@pytest.mark.parametrize(("has_device", "name"), [(True, "tensorrt"), (False, "tensorrt-rtx")])
def test_with_both_installed_the_device_decides(installed, has_device, name):
    installed(fake_tensorrt(), fake_rtx())
    chosen, reason = choose_flavour(has_device=has_device)
    assert chosen.name == name
    assert "GPU" in reason


def test_a_broken_installation_keeps_its_traceback(installed, monkeypatch, tmp_path):
    installed()
    (tmp_path / "tensorrt.py").write_text("import libnvinfer_of_nowhere")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt")
    with pytest.raises(ModuleNotFoundError, match="libnvinfer_of_nowhere"):
        load_flavour("tensorrt")
