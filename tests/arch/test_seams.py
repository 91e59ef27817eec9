"""Tests replace parts of refdiff by arguments; they patch the system and other packages alone."""

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]

LEFT = {
    "batch/test_folder.py": 1,
    "diagnostics/test_doctor.py": 1,
    "passes/test_quantize.py": 1,
}
"""File -> patches that are left: of what a command opens itself, and of a function whose calls are counted.
Add none."""


def own_names(tree: ast.Module) -> set[str]:
    """Names that a file imports from refdiff."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "refdiff":
            found |= {each.asname or each.name for each in node.names}
        if isinstance(node, ast.Import):
            found |= {each.asname or "refdiff" for each in node.names if each.name.split(".")[0] == "refdiff"}
    return found


def patches(tree: ast.Module) -> Iterator[str]:
    """Targets of `setattr` by pytest that are ours."""
    ours = own_names(tree)
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
            continue
        target = node.args[0]
        if node.func.attr != "setattr":
            continue
        if isinstance(target, ast.Constant) and str(target.value).startswith("refdiff."):
            yield f"{target.value} in line {node.lineno}"
        while isinstance(target, ast.Attribute):
            target = target.value
        if isinstance(target, ast.Name) and target.id in ours:
            yield f"{target.id} in line {node.lineno}"


def test_no_test_patches_a_module_of_refdiff() -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(TESTS.rglob("*.py"))}
    found = {
        str(path.relative_to(TESTS)): list(patches(ast.parse(text)))
        for path, text in texts.items()
        if "setattr" in text
    }
    counts = {name: len(some) for name, some in found.items() if some}
    assert counts == LEFT, {name: found[name] for name in counts if counts[name] != LEFT.get(name)}


def test_every_way_to_patch_refdiff_is_seen() -> None:
    code = """
import refdiff.engines.ort as room
from refdiff.contracts.bundle import Bundle
monkeypatch.setattr(room, "open", None)
patch.setattr(room.ort, "x", None)
monkeypatch.setattr(Bundle, "golden", None)
monkeypatch.setattr("refdiff.engines.ort.open", None)
monkeypatch.setattr(os, "open", None)
"""
    assert len(list(patches(ast.parse(code)))) == 4
