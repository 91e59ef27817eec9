"""`evaluate` on rendered scenes."""

from pathlib import Path

import pytest

from refdiff.errors import InputError
from refdiff.evaluation import evaluate
from refdiff.miniature import evaluate as evaluate_command


def test_evaluate_measures_the_runtime(tiny_bundle: Path) -> None:
    lines: list[str] = []
    report = evaluate.evaluate(count=2, mode="gen", bundle=tiny_bundle, progress=lines.append)
    document = report.to_json()
    assert document["count"] == 2
    assert {"miou", "oiou", "pr@0.5", "pr@0.9", "oracle_miou", "by_cue", "seconds"} <= set(document)
    assert document["oracle_miou"] >= document["miou"] >= 0
    assert lines[0].startswith("back-end ort-")
    assert lines[1:] == [f"2/2 scenes, mIoU {document['miou']:.3f}"]


@pytest.mark.slow
def test_evaluate_measures_the_same_in_two_processes(tiny_bundle: Path) -> None:
    one, two = (evaluate.evaluate(count=3, mode="gen", bundle=tiny_bundle, jobs=jobs) for jobs in (1, 2))
    assert one.metrics == two.metrics


def test_the_evaluation_s_command_prints_one_document_or_a_line(
    tiny_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate_command.main(["--count", "1", "--mode", "gen", "--bundle", str(tiny_bundle)]) == 0
    assert "oracle_miou" in capsys.readouterr().out
    assert evaluate_command.main(["--count", "0"]) == 2
    assert capsys.readouterr().err.startswith("error: got count 0")


def test_an_unknown_computation_is_refused() -> None:
    with pytest.raises(InputError, match="unknown back-end 'abacus'; choose one of: torch, onnx"):
        evaluate.evaluate(backend="abacus")
