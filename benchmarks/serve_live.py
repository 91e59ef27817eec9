"""A live session next to a client of `/v1/segment`, on one server: do they take turns?

    .venv/bin/python -m benchmarks.serve_live [--seconds 60]

The session sends a rendered clip of 640x480 px as a browser does: the next picture when the server has taken
the last one, at most 15 a second, and compares every mask with the true one of its picture. The client asks
about one new image after the other. Each runs alone, then both together; the engines have one thread. Run it
on a machine that does nothing else: it refuses to record otherwise. Adds an entry to results/serve-live.json;
takes three times the seconds.
"""

from __future__ import annotations

import argparse
import io
import json
import threading
import time
from collections import Counter
from typing import Any

import cv2
import numpy as np
from PIL import Image
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from benchmarks.records import RESULTS, QuietMachine, add_entry
from benchmarks.serve_load import Asked, Questions, server
from refdiff.contracts.session import Bool
from refdiff.data.moving_scenes import MovingScene

RECORD = RESULTS / "serve-live.json"
SEED, FRAMES, RATE = 7, 120, 15.0


def main() -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="for each of the three parts")
    seconds = parser.parse_args().seconds
    with QuietMachine() as machine:
        entry = measure(seconds)
    add_entry(
        RECORD, "mini", {**entry, "seconds": seconds, "others_share_of_cores": round(machine.others, 4)}
    )


def measure(seconds: float) -> dict[str, Any]:
    """Run the three parts."""
    clip, questions = Clip(), Questions()
    parts: dict[str, Any] = {}
    with server("mini") as (url, _):
        for name in ("client", "session", "both"):
            ends = time.monotonic() + seconds
            asked, session = Asked(), Session(clip)
            works = [
                threading.Thread(target=asked.ask, args=(url, questions, ends), daemon=True),
                threading.Thread(target=session.run, args=(url, ends), daemon=True),
            ]
            works = {"client": works[:1], "session": works[1:], "both": works}[name]
            for each in works:
                each.start()
            for each in works:
                each.join()
            parts[name] = {
                **({"client": of_client(asked, seconds)} if asked.times else {}),
                **({"session": session.numbers(seconds)} if session.delays else {}),
            }
    return parts


def of_client(asked: Asked, seconds: float) -> dict[str, Any]:
    """Return rate and times of the client."""
    failed = {"refused": asked.refused, "failed": len(asked.failed)}
    return {"answers_per_s": round(len(asked.times) / seconds, 2), **_percentiles(asked.times), **failed}


class Clip:
    """A rendered clip, played to and fro: its pictures as files, and the true masks."""

    def __init__(self) -> None:
        scene = MovingScene(SEED, "slow", cut=False)
        target = scene.phrases[0].target
        self.phrase = scene.phrases[0].phrase
        self._files, self._masks = [], []
        for number in range(FRAMES):
            frame = scene.frame(number)
            buffer = io.BytesIO()
            Image.fromarray(frame.pixels).save(buffer, "JPEG", quality=85)
            self._files.append(buffer.getvalue())
            self._masks.append(frame.masks[target])

    def at(self, seconds: float) -> tuple[bytes, Bool]:
        """Return the picture that the camera shows at a time, and its mask."""
        number = int(seconds * MovingScene.fps) % (2 * FRAMES - 2)
        number = min(number, 2 * FRAMES - 2 - number)
        return self._files[number], self._masks[number]


class Session:
    """One live session and what came of it."""

    def __init__(self, clip: Clip) -> None:
        self._clip = clip
        self._sent: list[tuple[float, Bool]] = []
        self.delays: list[float] = []
        self._overlaps: list[float] = []
        self._states: Counter[str] = Counter()
        self._keys: set[int] = set()

    def run(self, url: str, ends: float) -> None:
        """Send pictures and read results until a time."""
        started = time.monotonic()
        with _opened(url) as socket:
            socket.send(json.dumps({"type": "phrases", "phrases": [self._clip.phrase]}))
            taken = -1
            while (now := time.monotonic()) < ends:
                if taken == len(self._sent) - 1:
                    picture, mask = self._clip.at(now - started)
                    self._sent.append((now, mask))
                    socket.send(picture)
                taken = self._read(socket, taken, now + 1 / RATE)

    def _read(self, socket: ClientConnection, taken: int, until: float) -> int:
        """Read messages until the next picture is due; return the last picture that was taken."""
        while (left := until - time.monotonic()) > 0:
            try:
                message = json.loads(socket.recv(timeout=left))
            except TimeoutError:
                break
            if message["type"] == "taken":
                taken = message["frame"]
            elif message["type"] == "result":
                self._take(message)
        return taken

    def _take(self, message: dict[str, Any]) -> None:
        sent, truth = self._sent[message["frame"]]
        self.delays.append(time.monotonic() - sent)
        (target,) = message["targets"]
        self._states[target["state"]] += 1
        if target["masks"] is None:
            return
        self._keys.add(target["key_frame"])
        mask = np.zeros(truth.shape, np.uint8)
        cv2.fillPoly(mask, [np.array(ring, np.int32) for ring in target["masks"]], (1,))
        found = mask.astype(bool)
        self._overlaps.append((found & truth).sum() / (found | truth).sum())

    def numbers(self, seconds: float) -> dict[str, Any]:
        """Return rates, delays from sending a picture to its result, and the masks' IoU with the truth."""
        return {
            "results_per_s": round(len(self.delays) / seconds, 2),
            "key_frames_per_s": round(len(self._keys) / seconds, 2),
            **_percentiles(self.delays),
            "states": dict(self._states),
            "mean_iou": round(float(np.mean(self._overlaps)), 4) if self._overlaps else None,
        }


def _opened(url: str) -> ClientConnection:
    """Open a session, once the one before has left."""
    while True:
        socket = connect(url.replace("http", "ws") + "/v1/live", compression=None, proxy=None)
        try:
            socket.recv(timeout=20)
        except ConnectionClosed:
            time.sleep(0.1)
        else:
            return socket


def _percentiles(times: list[float]) -> dict[str, float]:
    return {f"p{share}_ms": round(1e3 * float(np.percentile(times, share)), 1) for share in (50, 90, 99)}


if __name__ == "__main__":
    main()
