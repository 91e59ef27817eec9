"""What docs/engines.md, docs/jetson.md and the Dockerfile name is there: verbs, options, extras, files."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from refdiff.cli.app import app
from refdiff.engines.factory import BACKENDS
from refdiff.engines.memory_plan import read_memory
from refdiff.engines.trt.flavour import FLAVOURS

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "docker" / "jetson" / "Dockerfile").read_text(encoding="utf-8")
DOCUMENTS = {name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("engines.md", "jetson.md")}
EXTRAS = set(
    re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text().split("[project.scripts]")[0], re.M)
)


def commands(text):
    """Arguments of every refdiff in a document's shell blocks, in a container too."""
    for block in re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words[:2] == ["docker", "run"] or words[:1] == ["refdiff"]:
                yield words[words.index("refdiff") + 1 :]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_it_shows_is_one(document):
    group = typer.main.get_command(app)
    shown = list(commands(DOCUMENTS[document]))
    assert shown
    for verb, *arguments in shown:
        given = group.commands[verb].make_context(verb, arguments).params  # parses, and runs nothing
        assert given.get("backend") in (None, *BACKENDS)
        assert given.get("flavour") in (None, "auto", *FLAVOURS)
        read_memory(given.get("memory"))


@pytest.mark.parametrize("text", [*DOCUMENTS.values(), DOCKERFILE], ids=[*DOCUMENTS, "Dockerfile"])
def test_every_extra_it_installs_exists(text):
    named = re.findall(r"(?:refdiff|/src|'\.)\[([\w,]+)\]", text)
    assert named
    assert {extra for each in named for extra in each.split(",")} <= EXTRAS


def test_a_jetson_installs_no_other_tensorrt():
    jetson = re.search(r"^jetson = (\[.*\])$", (ROOT / "pyproject.toml").read_text(), re.M)
    assert "tensorrt" not in jetson[1]
    assert "[trt]" not in DOCUMENTS["jetson.md"] + DOCKERFILE


def test_what_the_dockerfile_copies_is_there():
    sources = [word for line in re.findall(r"^COPY (.*)$", DOCKERFILE, re.M) for word in line.split()[:-1]]
    assert len(sources) == 4
    assert all((ROOT / source).exists() for source in sources)


def test_the_device_s_document_names_the_dockerfile_and_its_base():
    base = re.search(r"^ARG BASE=(\S+)$", DOCKERFILE, re.M)
    assert f"`{base[1]}`" in DOCUMENTS["jetson.md"]
    assert "docker/jetson/Dockerfile" in DOCUMENTS["jetson.md"]
