"""What the README shows runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

from PIL import Image

from refdiff.miniature.scenes import render_scene

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_python_block_runs(tmp_path, monkeypatch, capsys):
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    Image.fromarray(render_scene(1_000_003).image).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})  # noqa: S102 - our own README
    score, *box, pixels = capsys.readouterr().out.split()
    assert float(score) > 0
    assert len(box) == 4
    assert int(pixels) > 0
    assert (tmp_path / "mask.png").is_file()


def test_every_verb_of_the_table_exists():
    from refdiff.cli import app

    shown = set(re.findall(r"^\| `refdiff (\w+)", README, flags=re.MULTILINE))
    registered = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert shown == registered


def test_every_make_target_it_names_exists():
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    for target in set(re.findall(r"`?make (\w+)", README)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
