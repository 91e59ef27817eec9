"""Damaged and hostile bundles, images and plans; threads and leaks."""

from __future__ import annotations

import io
import json
import operator
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

from benchmarks.fault_ground import Case, Ending, Ground, call, fault_of, refused_or_same, spread
from refdiff.contracts.inspection import bundle_path
from refdiff.contracts.options import BackendOptions
from refdiff.engines.trt.device import Device
from refdiff.engines.trt.plan_store import PlanFiles
from refdiff.engines.trt.validation import check_plan
from refdiff.errors import EngineError, RefdiffError
from refdiff.loading import load
from refdiff.runtime.image import read_image
from tests.support.damage import bomb, edit_manifest, rehash
from tests.support.fake_builder import fake_flavour, fake_tensorrt
from tests.support.fuzzing import mutations
from tests.support.plans import MINIATURE, identity, put

_HUGE = 1 << 40
_SLOPE_BYTES = 60_000
"""Memory per image that counts as a leak: a tenth of an image's masks."""
_ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 7, 1e308, 1 << 70, "", "x", "9" * 400, [], {}),
    *([[]], {"a": 1}, "../outside/secret", "/etc/passwd", "\x1b[31m", [1] * 4000, "a" * 100_000),
)


def _flip(content: bytes, ground: Ground) -> bytes:
    place = ground.rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << ground.rng.randrange(8)]) + content[place + 1 :]


def _cut(content: bytes, ground: Ground) -> bytes:
    return content[: ground.rng.randrange(len(content))]


_CHANGES: dict[str, Callable[[bytes, Ground], bytes]] = {
    "flipped bit": _flip,
    "cut": _cut,
    "empty": lambda *_: b"",
    "longer": lambda content, ground: content + ground.rng.randbytes(ground.rng.randint(1, 5000)),
    "zeroed": lambda content, _: bytes(len(content)),
}


def _replaced_by(kind: str, path: Path, ground: Ground) -> None:
    """Put something else in the place of a file."""
    content = path.read_bytes()
    path.unlink()
    copy = ground.outside / path.name
    copy.write_bytes(content)
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(copy)
    elif kind == "link to itself":
        path.symlink_to(path.name)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "huge":
        path.write_bytes(content)
        os.truncate(path, _HUGE)
    elif kind == "another file":
        others = sorted(each for each in path.parent.iterdir() if each != path)
        shutil.copy(ground.rng.choice(others), path)


_KINDS = ("FIFO", "folder", "link", "link to itself", "device", "huge", "another file", "nothing")


def _clone(ground: Ground) -> Path:
    """Return a copy of the miniature's bundle whose files are links to another copy: cheap to damage."""
    pristine, bundle = ground.folder / "pristine", ground.fresh("bundle")
    if not pristine.exists():
        shutil.copytree(bundle_path("mini"), pristine)
    bundle.mkdir()
    for path in pristine.iterdir():
        os.link(path, bundle / path.name)
    return bundle


def _write(path: Path, content: bytes) -> None:
    """Replace a file, and not what it is linked with."""
    path.unlink()
    path.write_bytes(content)


def _segment(ground: Ground, bundle: Path) -> Ending:
    return call("segment", bundle, ground.photo, ground.phrase, "--json", "-q", ground=ground)


def bundles(ground: Ground) -> Iterator[Case]:
    """Damage every file of a bundle in every way."""
    names = sorted(path.name for path in bundle_path("mini").iterdir())
    cases = [(name, kind) for name in names for kind in (*_CHANGES, "flipped bit", *_KINDS)]
    for name, kind in spread(ground, cases, 200, 8):
        bundle = _clone(ground)
        if kind in _CHANGES:
            _write(bundle / name, _CHANGES[kind]((bundle / name).read_bytes(), ground))
        else:
            _replaced_by(kind, bundle / name, ground)
        yield f"{name}: {kind}", refused_or_same(_segment(ground, bundle), ground.answer)


def hostile_bundles(ground: Ground) -> Iterator[Case]:
    """Change a bundle as an attacker would, with a manifest that agrees."""
    yield from _odd_fields(ground)
    names = [path for path in sorted(bundle_path("mini").iterdir()) if path.name != "manifest.json"]
    for path in spread(ground, names * 4, 46, 3):
        bundle = _clone(ground)
        content = next(_some(ground, path.read_bytes(), 1))
        _write(bundle / path.name, content)
        _rehash(bundle, path.name)
        yield f"{path.name}: mutated, in the manifest", _judged(_segment(ground, bundle))
    data = [path.name for path in names if path.suffix == ".data"]
    for name, prefix in spread(ground, [(n, p) for n in data for p in ("../outside/", "/etc/")], 8, 2):
        bundle = _clone(ground)
        elsewhere = prefix + "x" * (len(name) - len(prefix))
        if prefix.startswith(".."):
            shutil.copy(bundle / name, ground.outside / elsewhere.removeprefix(prefix))
        graph = name.removesuffix(".data")
        _write(bundle / graph, (bundle / graph).read_bytes().replace(name.encode(), elsewhere.encode()))
        _rehash(bundle, graph)
        for verb in (("segment", bundle, ground.photo, ground.phrase), ("inspect", bundle)):
            yield f"{graph}: weights in {elsewhere}", fault_of(call(*verb, ground=ground), codes=(2,))


def _odd_fields(ground: Ground) -> Iterator[Case]:
    document = json.loads((bundle_path("mini") / "manifest.json").read_text())
    places = [place for place in _places(document) if place != ("sha256",)]
    for place in spread(ground, places * 2, 120, 6):
        bundle, value = _clone(ground), ground.rng.choice(_ODD)
        _write(bundle / "manifest.json", (bundle / "manifest.json").read_bytes())
        edit_manifest(bundle, partial(_set, place, value))
        what = f"manifest.json: {'.'.join(map(str, place))} = {str(value)[:40]!r}"
        yield what, _judged(_segment(ground, bundle))


def _rehash(bundle: Path, name: str) -> None:
    _write(bundle / "manifest.json", (bundle / "manifest.json").read_bytes())
    rehash(bundle, name)


def _judged(ending: Ending) -> str | None:
    return fault_of(ending, codes=(0, 2, 3))


def _places(document: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if place:
        yield place
    if isinstance(document, (dict, list)):
        for key, value in document.items() if isinstance(document, dict) else enumerate(document):
            yield from _places(value, (*place, key))


def _set(place: tuple[Any, ...], value: Any, document: Any) -> None:
    for key in place[:-1]:
        document = document[key]
    document[place[-1]] = value


_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")


def images(ground: Ground) -> Iterator[Case]:
    """Segment images that are no images, and mutated ones."""
    for name, content, same in _odd_images(ground):
        path = ground.fresh("odd.png")
        if content is None:
            os.mkfifo(path)
        else:
            path.write_bytes(content)
        ending = call("segment", "mini", path, ground.phrase, "--json", "-q", ground=ground)
        yield name, refused_or_same(ending, ground.answer) if same else fault_of(ending, codes=(2,))
    small = Image.open(ground.photo).resize((64, 88))
    samples = {kind: _encoded(small, kind) for kind in _FORMATS}
    for kind, content in samples.items():
        number = ground.count(200, 8)
        for count, mutated in enumerate(
            islice(mutations([content], seed=ground.rng.randrange(1 << 30)), number)
        ):
            yield f"{kind} number {count}, decoded", _decoded(mutated)
    for turn in range(ground.count(4, 0)):
        folder, answers = ground.fresh("mutated"), ground.fresh("answers")
        folder.mkdir()
        for kind, content in samples.items():
            for number, mutated in enumerate(
                islice(mutations([content], seed=ground.rng.randrange(1 << 30)), 4)
            ):
                (folder / f"{kind}-{number}.png").write_bytes(mutated)
        ending = call("segment", "mini", folder, ground.phrase, "-o", answers, "--json", "-q", ground=ground)
        fault = fault_of(ending, codes=(0, 1, 2))
        yield f"folder {turn} of 24 mutated images", fault or _unnamed(ending.out, folder, answers)


def _some(ground: Ground, content: bytes, count: int) -> Iterator[bytes]:
    return islice(mutations([content], seed=ground.rng.randrange(1 << 30)), count)


def _unnamed(text: str, folder: Path, answers: Path) -> str | None:
    """Return which images of a run are neither answered nor named with a reason."""
    document = json.loads(text)
    if "error" in document:
        return None
    named = {*document["failures"], *(name for names in document["skipped"].values() for name in names)}
    answered = {json.loads(path.read_text())["image"] for path in answers.glob("records/*.json")}
    left = {path.name for path in folder.iterdir()} - named - answered
    return f"not mentioned: {sorted(left)}" if left else None


def _decoded(content: bytes) -> str | None:
    try:
        image = read_image(content)
    except RefdiffError as error:
        return None if "\n" not in str(error) else f"several lines: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None if image.dtype == np.uint8 and image.ndim == 3 else f"{image.dtype} {image.shape}"


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=kind, **options)
    return stream.getvalue()


def _odd_images(ground: Ground) -> Iterator[tuple[str, bytes | None, bool]]:
    """Yield name, content (None for a FIFO), and whether it is the sound scene."""
    image, text = Image.open(ground.photo), PngImagePlugin.PngInfo()
    eps = _encoded(image.convert("RGB"), "EPS")
    yield "FIFO", None, False
    yield "EPS in disguise", eps, False
    yield "bomb of 60,000 px a side", bomb(), False
    yield "bomb of 9,000 px a side, cut", bomb(9_000, 9_000), False
    yield "SVG", b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>", False
    yield "PDF", b"%PDF-1.4\n", False
    yield "nothing", b"", False
    yield "half a file", ground.photo.read_bytes()[:4000], False
    text.add_itxt("note", "a" * 80_000_000, zip=True)
    yield "80 MB of compressed text", _encoded(image, "PNG", pnginfo=text), True
    text = PngImagePlugin.PngInfo()
    for number in range(200):
        text.add_text(f"note {number}", "\x1b[31m" + "b" * 9_000, zip=True)
    yield "200 text chunks", _encoded(image, "PNG", pnginfo=text), True
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    yield "color profile", _encoded(image, "PNG", icc_profile=profile + bytes(3_000_000)), True
    yield "bytes after the end", ground.photo.read_bytes() + ground.rng.randbytes(5_000), True


def plans(ground: Ground) -> Iterator[Case]:
    """Flip bits of plans and of their metadata, and bring a foreign plan that agrees with itself."""
    flavour = fake_flavour(fake_tensorrt(version="10.3.0"))
    device = Device(name="Orin", compute_capability="8.7", memory_bytes=8 * 10**9, driver_cuda="12.6")
    folder = ground.fresh("plans")
    folder.mkdir()
    files = PlanFiles(folder, "unet")
    put(files, ground.rng.randbytes(20_000), identity())
    sound = {path: path.read_bytes() for path in folder.iterdir() if path.suffix in (".plan", ".json")}

    def judge(*, accepts: Callable[[Any], bool]) -> str | None:
        try:
            found = check_plan(files.plan, MINIATURE, "unet", flavour, device, verify="hash")
        except EngineError as error:
            return None if "\n" not in str(error) else f"several lines: {error}"
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return None if accepts(found) else "accepted"

    metadata = check_plan(files.plan, MINIATURE, "unet", flavour, device, verify="hash")
    for path, content in sound.items():
        for number in range(ground.count(120, 10)):
            change = ground.rng.choice([_flip, _cut, *([_mutated] if path.suffix == ".json" else [])])
            path.write_bytes(change(content, ground))
            unchanged = metadata if path.suffix == ".json" else None
            yield f"{path.suffix} {number}", judge(accepts=partial(operator.eq, unchanged))
        path.write_bytes(content)
    ours = os.environ["XDG_STATE_HOME"]
    for number in range(ground.count(20, 2)):
        os.environ["XDG_STATE_HOME"] = str(ground.folder / "another-user")
        put(files, ground.rng.randbytes(1000 + number), identity())
        os.environ["XDG_STATE_HOME"] = ours
        yield f"a foreign plan {number}", judge(accepts=lambda _: False)


def _mutated(content: bytes, ground: Ground) -> bytes:
    return next(_some(ground, content, 1))


def threads(ground: Ground) -> Iterator[Case]:
    """Ask one segmenter from eight threads at the same time."""
    photos = [read_image(path) for path in sorted(ground.photos.iterdir())]
    questions = [(photo, phrase) for photo in photos for phrase in ("the mug", "the ball", "the red thing")]
    with load("mini", backend=BackendOptions(name="ort-cpu", threads=1)) as segmenter:

        def ask(number: int) -> Any:
            photo, phrase = questions[number % len(questions)]
            result = segmenter.segment(segmenter.encode(photo), phrase)
            return result.mask.tobytes(), result.score

        expected = [ask(number) for number in range(len(questions))]
        found: dict[int, Any] = {}

        def work(first: int) -> None:
            for number in range(first, ground.count(200, 16), 8):
                try:
                    found[number] = ask(number)
                except Exception as error:  # noqa: PERF203 - what is looked for
                    found[number] = repr(error)

        workers = [threading.Thread(target=work, args=(first,)) for first in range(8)]
        for each in workers:
            each.start()
        for each in workers:
            each.join()
    for number, answer in sorted(found.items()):
        same = answer == expected[number % len(expected)]
        yield f"answer {number}", None if same else f"another answer: {str(answer)[-200:]}"


def leaks(ground: Ground) -> Iterator[Case]:
    """Watch the memory over many images, phrases and openings."""
    photos = [read_image(path) for path in sorted(ground.photos.iterdir())]
    count, memory = ground.count(200, 20), list[int]()
    with load("mini", backend=BackendOptions(name="ort-cpu", threads=1)) as segmenter:
        for number in range(count):
            segmenter.segment(segmenter.encode(photos[number % len(photos)]), f"the mug {number}")
            memory.append(_resident_bytes())
    yield f"{count} images", _leak(memory)
    memory = []
    for _ in range(ground.count(20, 3)):
        with load("mini", backend=BackendOptions(name="ort-cpu", threads=1)) as segmenter:
            segmenter.segment(segmenter.encode(photos[0]), "the mug")
        memory.append(_resident_bytes())
    yield f"{len(memory)} openings", _leak(memory, limit=400_000)


def _leak(memory: list[int], limit: float = _SLOPE_BYTES) -> str | None:
    """Return the growth per step of the last two thirds, if it is more than the limit."""
    settled = memory[len(memory) // 3 :]
    slope = float(np.polyfit(range(len(settled)), settled, 1)[0])
    return None if slope < limit else f"grows by {slope:.0f} bytes a step"


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


ATTACKS: dict[str, Callable[[Ground], Iterator[Case]]] = {
    "damaged bundles": bundles,
    "hostile bundles": hostile_bundles,
    "images": images,
    "plans": plans,
    "threads": threads,
    "leaks": leaks,
}
