"""Every way a command can end: help, a bug, the system's refusals, signals and broken streams."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from refdiff.cli import main
from refdiff.cli.app import Json, app, verb
from refdiff.cli.entry import BUG

BASH = shutil.which("bash") or "bash"

RAISED: list[BaseException] = []


@pytest.fixture
def failing_verb() -> Iterator[list[BaseException]]:
    """A verb `fail`, which raises what is in the list."""
    before = list(app.registered_commands)

    @verb("fail")
    def fail(as_json: Json = False) -> None:
        raise RAISED[-1]

    yield RAISED
    app.registered_commands[:] = before
    RAISED.clear()


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "refdiff", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload, no-any-return]


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash, in which `refdiff` is this program."""
    function = f'refdiff() {{ "{sys.executable}" -m refdiff "$@"; }}\n'
    return subprocess.run([BASH, "-c", function + line], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"], ["help"]])
def test_help_is_several_lines_on_stdout_and_success(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    streams = capsys.readouterr()
    assert streams.err == ""
    assert streams.out.startswith("Usage: refdiff")
    assert max(map(len, streams.out.splitlines())) <= 80


@pytest.mark.parametrize("arguments", [["inspect", "-h"], ["help", "inspect"], ["inspect", "--help"]])
def test_a_verb_s_help_is_found_by_every_name(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith("Usage: refdiff inspect")


def test_the_version_is_a_verb_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out.startswith("refdiff ")


@pytest.mark.slow
def test_completion_for_the_shell_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-h"]) == 0
    assert "--install-completion" in capsys.readouterr().out
    offered = run(env={**os.environ, "_REFDIFF_COMPLETE": "complete_bash", "COMP_WORDS": "refdiff insp",
                       "COMP_CWORD": "1"})  # fmt: skip
    assert offered.stdout.split() == ["inspect"]


def test_a_bug_is_one_line_and_its_own_exit_code(
    failing_verb: list[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    failing_verb.append(ZeroDivisionError("of zero"))
    assert main(["fail"]) == BUG == 70
    streams = capsys.readouterr()
    assert streams.out == ""
    assert streams.err.startswith(
        "error: ZeroDivisionError: of zero; this is a bug in refdiff: run again with "
    )
    assert streams.err.count("\n") == 1


def test_a_bug_with_debug_shows_the_traceback(
    failing_verb: list[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    failing_verb.append(ZeroDivisionError("of zero"))
    assert main(["fail", "--debug"]) == BUG
    said = capsys.readouterr().err
    assert "Traceback (most recent call last)" in said
    assert said.splitlines()[-1].startswith("error: ZeroDivisionError")


class Panic(BaseException):
    """What a Rust package raises where it panics: no Exception."""


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (Panic("index out of range"), 70, "Panic: index out of range; this is a bug"),
        (RecursionError("too deep"), 70, "RecursionError"),
        (OSError(errno.ENOSPC, "No space left", "/out/a"), 3, "/out/a: No space left; free space"),
        (PermissionError(errno.EACCES, "Permission denied", "/a"), 3, "/a: Permission denied; check its"),
        (OSError("no name"), 3, "no name"),
        (RuntimeError("can't start new thread"), 3, "the system allows no more threads; end other"),
        (MemoryError(), 3, "not enough memory"),
        (ModuleNotFoundError("No module named 'x'"), 3, "the installation is incomplete: No module"),
        (KeyboardInterrupt(), 130, "interrupted; nothing is left half-written"),
    ],
)  # fmt: skip
def test_what_no_verb_expects_is_one_line_and_one_document(
    error: BaseException,
    code: int,
    said: str,
    failing_verb: list[BaseException],
    capsys: pytest.CaptureFixture[str],
) -> None:
    failing_verb.append(error)
    assert main(["fail", "--json"]) == code
    streams = capsys.readouterr()
    document = json.loads(streams.out)["error"]
    assert document["exit_code"] == code
    assert document["message"].startswith(said)
    assert streams.err.startswith(f"error: {said}")
    assert streams.err.count("\n") == 1


@pytest.mark.slow
def test_a_bug_with_json_is_a_document(tmp_path: Path) -> None:
    code = (
        "import sys; from refdiff.cli import main; import refdiff.contracts.inspection as room\n"
        "room.inspect = None\nsys.exit(main(['inspect', 'mini', '--json']))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 70
    assert json.loads(process.stdout)["error"]["kind"] == "TypeError"
    assert json.loads(process.stdout)["error"]["exit_code"] == 70


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("arguments", ["inspect mini", "inspect mini --json", "--help", "--version"])
def test_an_answer_that_cannot_be_written_is_one_line_and_exit_code_3(arguments: str) -> None:
    process = shell(f"refdiff {arguments} >/dev/full")
    assert process.returncode == 3
    assert process.stderr == "error: cannot write to stdout: No space left on device\n"


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="streams as POSIX has them")
@pytest.mark.parametrize("arguments", ["inspect mini", "inspect mini --json"])
def test_a_closed_stdout_is_one_line_and_exit_code_3(arguments: str) -> None:
    process = shell(f"refdiff {arguments} >&-")
    assert process.returncode == 3
    assert process.stderr == "error: cannot write to stdout: it is closed\n"


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="streams as POSIX has them")
def test_a_reader_that_is_gone_ends_the_command_quietly() -> None:
    process = shell("refdiff inspect mini | true; echo ${PIPESTATUS[0]}")
    assert process.stdout in ("141\n", "0\n")  # 0 where the answer was in the pipe before `true` ended
    assert process.stderr == ""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("stream", ["2>&-", "2>/dev/full"])
def test_a_stderr_that_fails_changes_no_answer(stream: str) -> None:
    process = shell(f"refdiff inspect mini {stream}; refdiff inspect nothing {stream}; echo $?")
    assert process.stdout.splitlines()[-1] == "2"
    assert "sd_text" in process.stdout


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="locales as POSIX has them")
def test_a_stdout_that_is_not_utf_8_gets_plain_characters() -> None:
    plain = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    process = run("inspect", "mini", env=plain)
    assert process.returncode == 0
    assert "image 1x3x128x128" in process.stdout
    assert process.stdout.isascii()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="signals as POSIX has them")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_unwinds_the_command_and_is_named(name: str) -> None:
    number = signal.Signals[name]
    code = (
        "import signal, sys; from refdiff.cli import main; import refdiff.contracts.inspection as room\n"
        f"signal.signal({int(number)}, signal.SIG_DFL)\n"  # nohup, for one, has SIGHUP ignored
        f"room.inspect = lambda *rest, **options: signal.raise_signal({int(number)})\n"
        "sys.exit(main(['inspect', 'mini']))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 128 + number
    assert process.stderr == f"error: ended by {name}; nothing is left half-written\n"


def test_capitals_in_a_choice_are_accepted(mini_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "--precision", "FP17"]) == 2
    assert "unknown precision 'fp17'" in capsys.readouterr().err
    assert main(["segment", str(mini_bundle), "no.png", "mug", "--variant", "EDGE", "--mode", "Full"]) == 2
    assert "no.png does not exist" in capsys.readouterr().err


@pytest.mark.slow
def test_verbose_logs_what_is_read_and_quiet_prints_no_notes(
    mini_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    from refdiff.miniature.scenes import render_scene

    Image.fromarray(render_scene(1_000_007).image).save(tmp_path / "a.png")
    command = ["segment", str(mini_bundle), str(tmp_path / "a.png"), "mug", "-o", str(tmp_path / "m.png")]
    assert main([*command, "-v"]) == 0
    said = capsys.readouterr().err
    assert f"opened bundle {mini_bundle}" in said
    assert "back-end ort-" in said
    assert "encode" in said
    assert f"wrote {tmp_path / 'm.png'}" in said
    assert main([*command, "--overwrite", "-q"]) == 0
    assert capsys.readouterr().err == ""


def test_the_library_logs_nothing_unless_asked() -> None:
    code = "import refdiff, logging; print(logging.getLogger('refdiff').handlers)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "NullHandler" in process.stdout
