"""Plans on disk: whole or not there, one build at a time, whatever is killed when."""

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from refdiff.contracts.manifest import ENGINES_NAME
from refdiff.engines.trt.metadata import PlanMetadata
from refdiff.engines.trt.plan_store import (
    drafted,
    keep_failed_log,
    locked,
    plan_files,
    plans_folder,
    reusable,
)
from refdiff.errors import InputError
from tests.support.plans import MINIATURE, identity, put

ROOT = Path(__file__).parents[3]


@pytest.fixture
def files(tmp_path):
    found = plan_files(tmp_path / ENGINES_NAME, identity())
    found.folder.mkdir(parents=True)
    return found


def not_called():
    pytest.fail("nothing else builds here")


def names(files):
    return sorted(path.name for path in files.folder.iterdir() if path.name != ".lock")


def test_a_plan_is_stored_with_its_metadata_and_log_under_its_device(files):
    with locked(files, not_called):
        metadata = put(files, b"plan")
    assert files.folder.name == "tensorrt-sm87"
    assert names(files) == ["unet.json", "unet.log", "unet.plan"]
    assert reusable(files, identity()) == metadata


def test_the_plan_is_tensorrt_s_bytes_and_nothing_else(files):
    put(files, b"ftrt\x00plan")
    assert files.plan.read_bytes() == b"ftrt\x00plan"


def test_a_plan_of_another_key_is_not_used_again(files):
    put(files, b"plan")
    assert reusable(files, identity(version="10.4.0")) is None
    assert reusable(files, identity(flags={"refit": True})) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda files: files.plan.write_bytes(b"pla"),
        lambda files: files.plan.write_bytes(b"plam"),
        lambda files: files.plan.unlink(),
        lambda files: files.metadata.unlink(),
        lambda files: files.metadata.write_text("{}"),
    ],
    ids=["truncated", "changed", "no plan", "no metadata", "no metadata content"],
)
def test_a_damaged_plan_is_not_used_again(files, damage):
    put(files, b"plan")
    damage(files)
    assert reusable(files, identity()) is None
    put(files, b"plan")
    assert reusable(files, identity()) is not None


def test_a_build_that_fails_leaves_the_old_plan_and_no_draft(files):
    put(files, b"plan")
    with pytest.raises(ZeroDivisionError), drafted(files) as draft:
        draft.write_bytes(b"half")
        raise ZeroDivisionError
    assert files.plan.read_bytes() == b"plan"
    assert names(files) == ["unet.json", "unet.log", "unet.plan"]


def test_the_log_of_a_failure_is_gone_after_the_next_good_build(files):
    assert keep_failed_log(files, "why\n").read_text() == "why\n"
    put(files, b"plan")
    assert names(files) == ["unet.json", "unet.log", "unet.plan"]


def test_drafts_of_other_graphs_are_left_alone(files):
    other = files.folder / ".unet_taps.123456789abc.partial"
    other.write_bytes(b"half")
    put(files, b"plan")
    assert other.exists()


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / ENGINES_NAME).write_text("in the way")
    files = plan_files(tmp_path / ENGINES_NAME, identity())
    with (
        pytest.raises(InputError, match=r"cannot write plans to .*copy the bundle"),
        locked(files, not_called),
    ):
        pytest.fail("this folder cannot be made")


def test_plans_are_stored_in_the_bundle_but_never_in_the_package(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert plans_folder(MINIATURE).is_relative_to(tmp_path / "refdiff")
    elsewhere = dataclasses.replace(MINIATURE, path=tmp_path / "copy")
    assert plans_folder(elsewhere) == tmp_path / "copy" / ENGINES_NAME


BUILDER = """
    import sys, time
    from pathlib import Path
    from refdiff.engines.trt.plan_store import PlanFiles, drafted, locked, reusable
    from tests.support.plans import identity, put
    files = PlanFiles(Path(sys.argv[1]), "unet")
    mode = sys.argv[2]
    with locked(files, lambda: print("waiting", flush=True)):
        if mode == "stuck":
            with drafted(files) as draft:
                draft.write_bytes(b"half a plan")
                print("building", flush=True)
                time.sleep(600)
        there = reusable(files, identity())
        if there is None:
            print("building", flush=True)
            sys.stdin.readline()
            put(files, mode.encode())
        else:
            print("kept", flush=True)
"""


def builder(files, mode):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(BUILDER), str(files.folder), mode],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), *sys.path))},
    )


@pytest.mark.slow
def test_of_two_builds_at_once_one_builds_and_the_other_waits_and_keeps_it(files):
    with builder(files, "first") as first:
        assert first.stdout.readline() == "building\n"
        with builder(files, "second") as second:
            assert second.stdout.readline() == "waiting\n"
            assert reusable(files, identity()) is None
            first.stdin.write("\n")
            first.stdin.flush()
            assert second.stdout.readline() == "kept\n"
            assert second.wait(timeout=60) == 0
        assert first.wait(timeout=60) == 0
    assert files.plan.read_bytes() == b"first"
    assert names(files) == ["unet.json", "unet.log", "unet.plan"]


def test_a_killed_build_leaves_nothing_that_loads_and_the_next_clears_it_away(files):
    with builder(files, "stuck") as process:
        assert process.stdout.readline() == "building\n"
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
    assert reusable(files, identity()) is None
    assert not files.plan.exists()
    assert len(names(files)) == 1  # the draft
    with locked(files, not_called):  # the system has released the lock
        put(files, b"plan")
    assert names(files) == ["unet.json", "unet.log", "unet.plan"]


def test_a_killed_rebuild_leaves_the_old_plan_whole(files):
    metadata = put(files, b"plan")
    with builder(files, "stuck") as process:
        assert process.stdout.readline() == "building\n"
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
    assert reusable(files, identity()) == metadata


def test_a_build_killed_between_plan_and_metadata_leaves_a_plan_that_does_not_count(files):
    put(files, b"old")

    class Killed(BaseException):
        pass

    class Unwritable(PlanMetadata):
        def to_text(self):
            raise Killed

    with pytest.raises(Killed):
        put(files, b"new", kind=Unwritable)
    assert files.plan.read_bytes() == b"new"
    assert reusable(files, identity()) is None
