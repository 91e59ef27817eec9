"""Damaged bundles and images."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from refdiff.contracts.atomic_io import hash_file
from refdiff.contracts.manifest import manifest_sha256


def copy_of(bundle: Path, target: Path) -> Path:
    """A bundle to damage."""
    shutil.copytree(bundle, target)
    return target


def edit_manifest(bundle: Path, change: Callable[[Any], None]) -> None:
    """Change the manifest's document in place, and its own hash with it: what an attacker would do."""
    path = bundle / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps({**document, "sha256": manifest_sha256(document)}))


def rehash(bundle: Path, name: str) -> None:
    """Make the manifest agree with a file that was changed."""

    def change(document: Any) -> None:
        path = bundle / name
        document["files"][name] = {"sha256": hash_file(path), "size_bytes": path.stat().st_size}

    edit_manifest(bundle, change)


def bomb(width: int = 60_000, height: int = 60_000) -> bytes:
    """A small PNG file that claims to be a huge image."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(10_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
