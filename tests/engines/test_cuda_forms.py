"""Forms for ort-cuda: when one is made, kept, made again or refused, and what runs if it cannot be used."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("onnx_ir")
onnxruntime = pytest.importorskip("onnxruntime")

from refdiff.cli import main
from refdiff.contracts.bundle import Bundle, open_bundle
from refdiff.diagnostics import doctor
from refdiff.engines import build as building
from refdiff.engines import ort as ort_module
from refdiff.engines.cuda_forms import CudaForms, disagreement, make_form, stored_forms
from refdiff.engines.factory import OrtSessions, open_sessions
from refdiff.engines.trt.options import BuildOptions
from refdiff.errors import EngineError, InputError
from refdiff.passes.cuda_form import Rewritten
from refdiff.runtime.golden_answer import give_answer
from tests.support.plans import BUNDLE

GRAPH = "clip_text"
"""Its form has operators of ONNX Runtime's, and a CPU has kernels for all of them."""


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A copy of the miniature's bundle without engines."""
    shutil.copytree(BUNDLE, tmp_path / "bundle")
    return open_bundle(tmp_path / "bundle", verify="size")


@pytest.fixture
def made() -> list[str]:
    return []


@pytest.fixture
def make(made: list[str]) -> Callable[[Path], tuple[bytes, Rewritten]]:
    def counted(path: Path) -> tuple[bytes, Rewritten]:
        made.append(path.stem)
        return make_form(path)

    return counted


def without_onnx(path: Path) -> tuple[bytes, Rewritten]:
    raise ModuleNotFoundError("No module named 'onnx_ir'", name="onnx_ir")


def stored(bundle: Bundle) -> Path:
    return bundle.path / "engines" / "ort-cuda" / f"{GRAPH}.onnx"


def test_a_form_is_made_once_and_then_loaded(bundle, make, made):
    first = CudaForms(bundle, "1.32.0", make).load(GRAPH)
    second = CudaForms(bundle, "1.32.0", make).load(GRAPH)
    assert first == second == stored(bundle).read_bytes()
    assert made == [GRAPH]
    assert b"MultiHeadAttention" in first
    metadata = json.loads(stored(bundle).with_suffix(".json").read_text())
    assert metadata["flags"] == {"form": 1}
    assert (metadata["flavour"], metadata["version"], metadata["targets"]) == ("ort", "1.32.0", ["cuda"])
    assert "attentions" in stored(bundle).with_suffix(".log").read_text()


def test_a_form_does_without_onnx_where_it_was_made_before(bundle):
    form = CudaForms(bundle, "1.32.0").load(GRAPH)
    assert CudaForms(bundle, "1.32.0", without_onnx).load(GRAPH) == form


@pytest.mark.parametrize("field", ["version", "onnx_sha256"])
def test_a_form_of_another_graph_or_onnx_runtime_is_made_again(bundle, make, made, field):
    forms = CudaForms(bundle, "1.31.0" if field == "version" else "1.32.0", make)
    forms.load(GRAPH)
    if field == "onnx_sha256":
        files = dict(bundle.manifest.files)
        name = bundle.manifest.graphs[GRAPH].files[0]
        files[name] = SimpleNamespace(**{**vars(files[name]), "sha256": "0" * 64})
        manifest = SimpleNamespace(**{**vars(bundle.manifest), "files": files})
        bundle = Bundle(path=bundle.path, manifest=manifest)
    assert CudaForms(bundle, "1.32.0", make).load(GRAPH)
    assert made == [GRAPH, GRAPH]
    metadata = json.loads(stored(bundle).with_suffix(".json").read_text())
    assert metadata["version"] == "1.32.0"


def test_a_damaged_form_is_made_again_and_refused_where_it_cannot_be(bundle, make, made, caplog):
    good = CudaForms(bundle, "1.32.0").load(GRAPH)
    stored(bundle).write_bytes(good[:-1] + b"?")
    with pytest.raises(EngineError, match=r"clip_text\.onnx is damaged.*delete it, or make it again"):
        CudaForms(bundle, "1.32.0", without_onnx).load(GRAPH)
    assert CudaForms(bundle, "1.32.0", make).load(GRAPH) == good == stored(bundle).read_bytes()
    assert made == [GRAPH]
    assert "is damaged" in caplog.text


def test_metadata_that_were_changed_are_not_believed(bundle, make, made):
    CudaForms(bundle, "1.32.0").load(GRAPH)
    path = stored(bundle).with_suffix(".json")
    path.write_text(path.read_text().replace("1.32.0", "1.33.0"))
    with pytest.raises(EngineError, match="was changed"):
        CudaForms(bundle, "1.33.0", without_onnx).load(GRAPH)
    assert CudaForms(bundle, "1.33.0", make).load(GRAPH)
    assert made == [GRAPH]


def test_a_form_that_came_with_the_bundle_is_made_again_until_it_is_accepted(
    bundle, make, made, tmp_path, monkeypatch
):
    CudaForms(bundle, "1.32.0").load(GRAPH)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another user"))
    assert CudaForms(bundle, "1.32.0", without_onnx).load(GRAPH) is None
    assert CudaForms(bundle, "1.32.0", without_onnx).build(GRAPH, trust=True).reused
    assert CudaForms(bundle, "1.32.0", without_onnx).load(GRAPH)
    assert made == []


def test_without_onnx_the_plain_graphs_run_and_one_line_says_what_to_install(bundle, caplog):
    forms = CudaForms(bundle, "1.32.0", without_onnx)
    with caplog.at_level(logging.WARNING):
        assert [forms.load(name) for name in (GRAPH, "sd_text")] == [None, None]
    (record,) = caplog.records
    assert "plain graphs: onnx_ir is not installed; pip install '.[export]'" in record.getMessage()
    assert "--flavour ort-cuda" in record.getMessage()


def test_another_missing_package_keeps_its_traceback(bundle):
    def broken(path: Path) -> tuple[bytes, Rewritten]:
        raise ModuleNotFoundError("No module named 'ml_dtypes'", name="ml_dtypes")

    with pytest.raises(ModuleNotFoundError, match="ml_dtypes"):
        CudaForms(bundle, "1.32.0", broken).load(GRAPH)


def test_a_folder_that_cannot_be_written_to_costs_only_the_storage(bundle, caplog):
    (bundle.path / "engines").write_text("in the way")
    with caplog.at_level(logging.INFO):
        assert CudaForms(bundle, "1.32.0").load(GRAPH) == make_form(bundle.graph_path(GRAPH))[0]
    assert "is not stored" in caplog.text
    assert CudaForms(bundle, "1.32.0", without_onnx).load(GRAPH) is None


class CudaOnCpu:
    """The module `onnxruntime`, whose CUDA provider is the CPU."""

    __version__ = onnxruntime.__version__

    def __init__(self, refused: bytes = b"\0none") -> None:
        self.models: list[Path | bytes] = []
        self.bindings = 0
        self._refused = refused

    def get_available_providers(self) -> list[str]:
        return ["CUDAExecutionProvider"]

    def InferenceSession(self, model: Path | bytes, **options: object) -> object:  # noqa: N802 - its name
        self.models.append(model)
        if isinstance(model, bytes) and self._refused in model:
            raise RuntimeError("no kernel for it")
        session = onnxruntime.InferenceSession(model, options["sess_options"])
        session.get_providers = lambda: ["CUDAExecutionProvider"]
        bind = session.io_binding

        def counted() -> object:
            self.bindings += 1
            return bind()

        session.io_binding = counted
        return session


def sessions_of(bundle: Bundle, runtime: CudaOnCpu) -> OrtSessions:
    def open_session(*arguments: object, **options: object) -> ort_module.OrtSession:
        session = ort_module.OrtSession(*arguments, **options, runtime=runtime)
        session._device = "cpu"
        return session

    module = SimpleNamespace(OrtSession=open_session, ort=runtime)
    return OrtSessions(bundle, module, backend="ort-cuda", reason="asked for", threads=1)


def test_ort_cuda_runs_the_form_after_it_gave_the_golden_record(bundle):
    runtime = CudaOnCpu()
    session = sessions_of(bundle, runtime).open(GRAPH)
    assert [type(model) for model in runtime.models] == [bytes, bytes], "checked, then opened"
    assert runtime.models[-1] == stored(bundle).read_bytes()
    assert disagreement(bundle, GRAPH, session) is None


@pytest.mark.slow
def test_the_whole_pipeline_gives_the_same_answer_over_forms_and_kept_tensors(bundle):
    """The forms with GroupNorm, which a CPU lacks, fall back to the plain graphs."""
    answers = []
    recorded = bundle.golden_answer()
    for sessions in (sessions_of(bundle, runtime := CudaOnCpu()), open_sessions(bundle, backend="ort-cpu")):
        given, _ = give_answer(
            sessions,
            bundle.spec,
            tokenizer_json=bundle.tokenizer_json(),
            positions=bundle.clip_positions(),
            prompts=bundle.prompt_vectors(),
            image=recorded.image,
            phrase=recorded.phrase,
        )
        answers.append(given)
    assert runtime.bindings > 2, "SAM's tensors stayed where they were computed"
    assert sum(isinstance(model, bytes) for model in runtime.models) > 10
    assert (answers[0].mask == answers[1].mask).all()
    np.testing.assert_allclose(answers[0].heat, answers[1].heat, atol=1e-3)


def test_a_form_without_kernels_on_this_device_is_not_used(bundle, caplog):
    runtime = CudaOnCpu(refused=b"MultiHeadAttention")
    session = sessions_of(bundle, runtime).open(GRAPH)
    assert runtime.models[-1] == bundle.graph_path(GRAPH)
    assert disagreement(bundle, GRAPH, session) is None
    assert "clip_text: ort-cuda runs the plain graph, because its form failed: ONNX Runtime" in caplog.text


def test_without_a_cuda_provider_no_form_is_made_and_the_error_is_that_of_the_plain_graph(bundle, caplog):
    runtime = CudaOnCpu()
    runtime.get_available_providers = lambda: ["CPUExecutionProvider"]
    with pytest.raises(EngineError, match="ort-cuda needs CUDAExecutionProvider"):
        sessions_of(bundle, runtime).open(GRAPH)
    assert not stored(bundle).exists()
    assert "form" not in caplog.text


def test_where_nothing_starts_on_cuda_the_form_is_not_blamed(bundle, caplog):
    class Broken(CudaOnCpu):
        def InferenceSession(self, model: Path | bytes, **options: object) -> object:  # noqa: N802 - its name
            raise RuntimeError("libcudnn.so.9 is missing")

    with pytest.raises(EngineError, match=r"libcudnn\.so\.9 is missing"):
        sessions_of(bundle, Broken()).open(GRAPH)
    assert "form" not in caplog.text


def test_doctor_counts_the_forms_that_are_intact(bundle):
    assert stored_forms(bundle) == {}
    for name in (GRAPH, "sd_text"):
        CudaForms(bundle, "1.32.0").load(name)
    assert stored_forms(bundle) == {"sd_text": True, GRAPH: True}
    stored(bundle).write_bytes(b"?")
    assert stored_forms(bundle) == {"sd_text": True, GRAPH: False}
    (line,) = doctor._form_lines(bundle)
    assert (line.name, line.state) == ("forms for ort-cuda", "warn")
    assert line.found == "1 of 9 graphs have one that is intact and fits; not that of clip_text"
    assert line.cure.endswith("--flavour ort-cuda, or leave it to the next load")


def test_a_form_that_computes_something_else_is_not_used(bundle, caplog):
    """The softmax's scale is wrong, as if a kernel ignored it."""
    import onnx

    forms = CudaForms(bundle, onnxruntime.__version__)
    model = onnx.load_from_string(forms.load(GRAPH))
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "scale":
                attribute.f = 3.0
    CudaForms(
        bundle, onnxruntime.__version__, lambda path: (model.SerializeToString(), make_form(path)[1])
    ).build(GRAPH, force=True)
    runtime = CudaOnCpu()
    sessions_of(bundle, runtime).open(GRAPH)
    assert isinstance(runtime.models[0], bytes)
    assert runtime.models[-1] == bundle.graph_path(GRAPH)
    assert "differs from the golden record: error" in caplog.text


def test_build_makes_the_forms_of_all_graphs_and_keeps_them(bundle, capsys):
    command = [
        "build",
        str(bundle.path),
        "--flavour",
        "ort-cuda",
        "--graph",
        GRAPH,
        "--graph",
        "sd_text",
        "--json",
    ]
    answers = []
    for _ in range(2):
        assert main(command) == 0
        answers.append(json.loads(capsys.readouterr().out))
    first, second = answers
    assert [each["graph"] for each in first["graphs"]] == ["sd_text", GRAPH]
    assert [each["reused"] for each in (*first["graphs"], *second["graphs"])] == [False, False, True, True]
    assert (first["flavour"], first["version"], first["targets"]) == (
        "ort-cuda",
        onnxruntime.__version__,
        ["cuda"],
    )


@pytest.mark.parametrize("options", [{"refit": True}, {"workspace_bytes": 1 << 30}, {"attention_op": True}])
def test_an_option_of_tensorrt_is_refused_for_forms(bundle, options):
    with pytest.raises(InputError, match=r"got --.*but it is an option of TensorRT's plans; leave it out"):
        building.build(bundle.path, flavour="ort-cuda", options=BuildOptions(**options))
