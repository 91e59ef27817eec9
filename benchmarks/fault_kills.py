"""Commands that are killed, interrupted or refused space and permissions, and two commands at one output.

Afterwards there is the old state or the new one, never a half-written one. The command, repeated, gives what
an undisturbed run gives, and nothing of the killed one is left.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import refdiff.engines.ort  # noqa: F401 - imports ONNX Runtime, so that forks need not
from benchmarks.fault_ground import (
    Case,
    Ending,
    Ground,
    call,
    die_at,
    drafts_in,
    fault_of,
    fork,
    spread,
    state_of,
)
from refdiff.contracts.inspection import bundle_path
from tests.support.fake_hub import FakeHub

_INTERRUPTS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}
_LIMITS = (0, 100, 4_000, 20_000, 100_000, 700_000, 3_000_000)
"""Bytes that a file may have where the disk is full."""
_CAPABILITIES = 0x20080522
"""_LINUX_CAPABILITY_VERSION_3 of linux/capability.h."""
_REPO = "someone/some-sam"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command with an output."""

    name: str
    arguments: tuple[object, ...]
    """Without the output."""
    option: str = "-o"
    output: str = "output"
    resumes: bool = True
    """It goes on where a stopped one ended; otherwise it refuses an output that exists."""

    def at(self, folder: Path) -> tuple[object, ...]:
        """Return the arguments with an output in this folder."""
        return (*self.arguments, self.option, folder / self.output, "-q")


def jobs(ground: Ground, names: Sequence[str] = ()) -> dict[str, Job]:
    """Return the commands that write something; all of them without names."""
    segment: tuple[object, ...] = ("segment", "mini", ground.photos, ground.phrase)
    found = (
        Job(name="folder run", arguments=segment),
        Job(name="evaluation", arguments=("eval", "mini", "--count", 3)),
        Job(name="recording", arguments=("calibrate", "mini", "--count", 2, "--variant", "edge")),
        Job(name="conversion", arguments=("convert", "mini", "--precision", "bf16"), resumes=False),
        Job(
            name="one image",
            arguments=("segment", "mini", ground.photo, ground.phrase),
            output="mask.png",
            resumes=False,
        ),
        Job(name="download", arguments=("fetch", _REPO), option="--to"),
    )
    return {job.name: job for job in found if not names or job.name in names}


@contextlib.contextmanager
def hub_of(ground: Ground) -> Iterator[FakeHub]:
    """Serve one SAM from a hub on this machine."""
    with FakeHub() as hub:
        weights = ground.rng.randbytes(3_000_000)
        hub.put(_REPO, {"config.json": b'{"model_type": "sam"}', "model.safetensors": weights})
        os.environ["HF_ENDPOINT"] = hub.address
        yield hub


@dataclass(frozen=True, kw_only=True)
class Undisturbed:
    """What a command gives if nothing disturbs it."""

    job: Job
    seconds: float
    state: Any


def undisturbed(ground: Ground, job: Job) -> Undisturbed:
    """Run a command once."""
    folder = ground.fresh("undisturbed")
    folder.mkdir()
    started = time.perf_counter()
    ending = fork(*job.at(folder)).end()
    if ending.code:
        raise RuntimeError(f"{job.name} fails undisturbed: {ending.err}")
    return Undisturbed(job=job, seconds=time.perf_counter() - started, state=_state(folder))


def _state(folder: Path) -> Any:
    return state_of(folder)


def ends_as_new(expected: Undisturbed, folder: Path) -> str | None:
    """Repeat a command that was disturbed; return how its end differs from that of an undisturbed run."""
    job = expected.job
    finished = not job.resumes and _state(folder) is not None and (folder / job.output).exists()
    if not finished:
        fault = fault_of(fork(*job.at(folder)).end(), codes=(0,))
        if fault is not None:
            return f"repeated: {fault}"
    elif drafts_in(folder):  # whatever writes there next sweeps them
        fork(*job.at(folder), "--overwrite").end()
    if left := drafts_in(folder):
        return f"left behind: {left}"
    return (
        None if _state(folder) == expected.state else f"another state: {_difference(folder, expected.state)}"
    )


def _difference(folder: Path, expected: Any) -> str:
    found = _state(folder)
    return ", ".join(sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name)))[
        :300
    ]


def _disturb(ground: Ground, expected: Undisturbed, number: int, name: str) -> Iterator[Case]:
    """Send a signal at a random moment, again and again, and repeat the command."""
    folder = ground.fresh("disturbed")
    folder.mkdir()
    for _ in range(ground.rng.randint(1, 2) if expected.job.resumes else 1):
        moment = ground.rng.uniform(0.02, 1.0) * expected.seconds
        running = fork(*expected.job.at(folder))
        time.sleep(moment)
        running.kill(number)
        yield f"{name}, {expected.job.name} after {moment:.2f} s", _badly_ended(running.end(), number)
    fault = ends_as_new(expected, folder)
    yield f"{name}, {expected.job.name} repeated", fault


def _badly_ended(ending: Ending, number: int) -> str | None:
    if ending.code == -number:  # before or after the command itself
        return None if "Traceback" not in ending.err else ending.err[-300:]
    return fault_of(ending, codes=(0, _INTERRUPTS.get(signal.Signals(number), 0)))


def kills(ground: Ground) -> Iterator[Case]:
    """Kill each command at random moments."""
    with hub_of(ground):
        for job in jobs(ground, ("folder run",) if ground.sample else ()).values():
            expected = undisturbed(ground, job)
            for _ in range(ground.count(2)):
                yield from _disturb(ground, expected, signal.SIGKILL, "kill -9")


def signals(ground: Ground) -> Iterator[Case]:
    """Interrupt each command at random moments."""
    with hub_of(ground):
        for job in jobs(ground, ("one image",) if ground.sample else ()).values():
            expected = undisturbed(ground, job)
            for number in list(_INTERRUPTS)[: ground.count(3)]:
                yield from _disturb(ground, expected, number, number.name)


def renames(ground: Ground) -> Iterator[Case]:
    """Kill a command that overwrites, each time just before it changes another name."""
    photos: tuple[object, ...] = ("segment", "mini", ground.photo, ground.phrase, "the ball")
    runs = {
        "answer folder": ((*photos, "--mode", "gen"), photos, 30),
        "bundle": (
            ("convert", "mini", "--precision", "fp16"),
            ("convert", "mini", "--precision", "bf16"),
            60,
        ),
    }
    for name, (old, new, most) in runs.items():
        if ground.sample and name == "bundle":
            continue
        before = undisturbed(ground, Job(name=name, arguments=old))
        kept = ground.fresh("kept")
        (ground.folder / "undisturbed").rename(kept)
        after = undisturbed(ground, Job(name=name, arguments=new))
        states = (before.state, after.state)
        for number in spread(ground, range(1, most), 8 if name == "answer folder" else 4, 2):
            folder = ground.fresh("overwritten")
            shutil.copytree(kept, folder)
            job = Job(name=name, arguments=(*new, "--overwrite"))
            ending = fork(*job.at(folder), before=partial(die_at, number)).end()
            what = f"{name} overwritten, killed at change {number}"
            if ending.code not in (0, -signal.SIGKILL):
                yield what, fault_of(ending, codes=(0,))
                continue
            fault = _mixed(folder / job.output, states) if name == "answer folder" else _gone(folder, states)
            yield what, fault or ends_as_new(Undisturbed(job=job, seconds=0, state=after.state), folder)


def _mixed(output: Path, states: Sequence[Any]) -> str | None:
    """Return what a half-overwritten answer folder says that neither run said."""
    found = state_of(output) or {}
    sound = [{name.removeprefix("output/"): value for name, value in state.items()} for state in states]
    for record in (name for name in found if name.startswith("records/")):
        files = [record, *(value for kind, value in found[record]["files"].items() if kind != "record")]
        if not any(all(found.get(name) == run.get(name) for name in files) for run in sound):
            return f"{record} describes files that are not there"
    lines = found.get("results.jsonl")
    if lines is not None and all(lines != run["results.jsonl"] for run in sound):
        return "results.jsonl is of neither run"
    return None


def _gone(folder: Path, states: Sequence[Any]) -> str | None:
    """Return whether a half-overwritten bundle is neither the old one nor the new one."""
    found = {name: value for name, value in _state(folder).items() if name.startswith("output/")}
    if found not in states:
        return f"the bundle is neither the old nor the new one: {sorted(found)[:3]}"
    return fault_of(call("inspect", folder / "output", "-q"), codes=(0,))


def full_disk(ground: Ground) -> Iterator[Case]:
    """Let no file grow beyond a size, and close stdout to writing."""
    with hub_of(ground):
        for job in jobs(ground, ("one image",) if ground.sample else ()).values():
            expected = undisturbed(ground, job)
            for size in spread(ground, _LIMITS, 2, 1):
                folder = ground.fresh("full")
                folder.mkdir()
                ending = fork(*job.at(folder), before=partial(_limit_files, size)).end()
                fault = fault_of(ending, codes=(0, 2, 3)) or ends_as_new(expected, folder)
                yield f"{job.name}, files of {size} bytes at most", fault
    image: tuple[object, ...] = ("segment", "mini", ground.photo, ground.phrase)
    for arguments in (("--help",), ("version",), ("inspect", "mini"), (*image, "--json"), image)[
        : ground.count(5, 3)
    ]:
        ending = fork(*arguments, stdout=Path("/dev/full")).end()
        yield f"{arguments[0]} > /dev/full", fault_of(ending, codes=(3,))
    for arguments in ((*image, "-o", "/dev/full"), (*image, "--overlay", "/dev/full")):
        yield f"{arguments[-2]} /dev/full", fault_of(fork(*arguments).end(), codes=(2, 3))


def _limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def permissions(ground: Ground) -> Iterator[Case]:
    """Take away the permission to write or read, of what a command needs."""
    with hub_of(ground):
        for job in jobs(ground, ("one image", "folder run") if ground.sample else ()).values():
            expected = undisturbed(ground, job)
            folder = ground.fresh("read-only")
            folder.mkdir(mode=0o500)
            ending = fork(*job.at(folder), before=_drop_privileges).end()
            folder.chmod(0o700)
            left = [each.name for each in folder.iterdir()]
            fault = fault_of(ending, codes=(2, 3)) or (f"it wrote {left}" if left else None)
            yield f"{job.name} to a read-only folder", fault or ends_as_new(expected, folder)
            yield from _read_only_inside(ground, expected)
    for name, path, arguments in _unreadable(ground):
        mode = path.stat().st_mode & 0o777
        path.chmod(0)
        ending = fork(*arguments, before=_drop_privileges).end()
        path.chmod(mode)
        yield f"unreadable {name}", fault_of(ending, codes=(1, 2, 3))


def _read_only_inside(ground: Ground, expected: Undisturbed) -> Iterator[Case]:
    """Repeat a finished folder's command where its folder has become read-only."""
    if not (expected.job.resumes and expected.job.output == "output"):
        return
    folder = ground.folder / "undisturbed"
    output = folder / expected.job.output
    output.chmod(0o500)
    ending = fork(*expected.job.at(folder), before=_drop_privileges).end()
    output.chmod(0o700)
    fault = fault_of(ending, codes=(0, 2, 3))
    yield f"{expected.job.name} again, its output read-only", fault or ends_as_new(expected, folder)


def _unreadable(ground: Ground) -> Iterator[tuple[str, Path, tuple[object, ...]]]:
    bundle, photos = ground.fresh("bundle"), ground.fresh("photos")
    shutil.copytree(bundle_path("mini"), bundle)
    shutil.copytree(ground.photos, photos)
    table = ground.folder / "phrases.csv"
    table.write_text(f"image,phrase\nscene-0.png,{ground.phrase}\n")
    image = photos / "scene-0.png"
    segment: tuple[object, ...] = ("segment", bundle, image, ground.phrase)
    run: tuple[object, ...] = ("segment", "mini", photos, "-o", ground.fresh("answers"))
    yield "image", image, segment
    yield "image of a folder", image, (*run, ground.phrase)
    yield "folder of images", photos, (*run, ground.phrase)
    yield "table of phrases", table, (*run, "--phrases", table)
    yield "bundle", bundle, segment
    for name in ("manifest.json", "tokenizer.json", "unet.onnx", "unet.onnx.data", "golden.npz"):
        yield name, bundle / name, segment
        yield name, bundle / name, ("inspect", bundle)
        yield name, bundle / name, ("convert", bundle, "--precision", "bf16", "-o", ground.fresh("b"))


def _drop_privileges() -> None:
    """Give up root's right to read and write everything; a user who has none keeps what is allowed."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITIES, 0)
    if ctypes.CDLL(None, use_errno=True).capset(header, (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), "capset")


def pairs(ground: Ground) -> Iterator[Case]:
    """Run a command twice at the same time, with one output."""
    with hub_of(ground):
        for job in jobs(ground, ("one image",) if ground.sample else ()).values():
            expected = undisturbed(ground, job)
            for _ in range(ground.count(1)):
                folder = ground.fresh("shared")
                folder.mkdir()
                first = fork(*job.at(folder))
                time.sleep(ground.rng.uniform(0, 0.3) * expected.seconds)
                endings = [fork(*job.at(folder)).end(), first.end()]
                faults = [fault_of(each, codes=(0, 2)) for each in endings]
                lost = next((each for each in faults if each), None)
                if lost is None and all(each.code for each in endings):
                    lost = "both were refused"
                yield f"two at once: {job.name}", lost or ends_as_new(expected, folder)


Attack = Callable[[Ground], Iterator[Case]]
ATTACKS: dict[str, Attack] = {
    "kill -9 at a random moment": kills,
    "kill -9 at a change of a name": renames,
    "signals": signals,
    "full disk": full_disk,
    "permissions": permissions,
    "two processes, one output": pairs,
}
