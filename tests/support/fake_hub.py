"""A hub on this machine: the few addresses of the real one that fetching uses, over a real socket.

Large files (.safetensors, .bin, .ckpt) are in large-file storage: listed with a sha256, and served in any
range from another address, which the first one redirects to.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

LARGE = (".safetensors", ".bin", ".ckpt", ".pth")

_API = re.compile(r"/api/models/([^/]+/[^/?]+)(?:/revision/([^?]+))?(?:\?.*)?")
_RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_STORED = re.compile(r"/stored/([^/]+/[^/]+)/([^/]+)/(.+)")


def commit_of(files: dict[str, bytes]) -> str:
    """Forty hexadecimal digits that follow from the content."""
    return hashlib.sha1(repr(sorted(files.items())).encode(), usedforsecurity=False).hexdigest()


@dataclass
class FakeHub:
    """Serve repositories while the `with` block lasts."""

    licence: str = "apache-2.0"
    gated: set[str] = field(default_factory=set)
    lies: dict[str, bytes] = field(default_factory=dict)
    """File name -> what is served instead of its content, of the same length."""
    vanished: set[str] = field(default_factory=set)
    """Files that are listed and not served."""
    cuts: list[int] = field(default_factory=list)
    """The next answers with a large file end after so many bytes."""
    ignores_ranges: bool = False
    """Large files are always served from their start."""
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    """Method, path, headers."""
    repos: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    """Repository -> commit -> file name -> content."""
    heads: dict[str, str] = field(default_factory=dict)

    def put(self, repo: str, files: dict[str, bytes]) -> str:
        """Make these the files of a repository's newest commit."""
        commit = commit_of(files)
        self.repos.setdefault(repo, {})[commit] = files
        self.heads[repo] = commit
        return commit

    def downloads(self) -> list[str]:
        """The files that were asked for, once each request."""
        return [
            match[3]
            for method, path, _ in self.requests
            if method == "GET" and (match := _STORED.fullmatch(path))
        ] + [
            match[3]
            for method, path, _ in self.requests
            if method == "GET" and (match := _RESOLVE.fullmatch(path)) and not match[3].endswith(LARGE)
        ]

    def ranges(self, name: str) -> list[str | None]:
        """The ranges in which a large file was asked for."""
        return [
            headers.get("range")
            for _, path, headers in self.requests
            if (match := _STORED.fullmatch(path)) and match[3] == name
        ]

    def __enter__(self) -> FakeHub:
        hub = self

        class Handler(_Handler):
            served = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: FakeHub

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.served.requests.append((self.command, self.path, headers))
        for pattern, answer in ((_API, self._api), (_RESOLVE, self._resolve), (_STORED, self._stored)):
            match = pattern.fullmatch(self.path)
            if match is not None:
                answer(*match.groups())
                return
        self._send(404, b"")

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def _api(self, repo: str, revision: str | None) -> None:
        commit = self._commit(repo, revision)
        if commit is not None:
            files = self.served.repos[repo][commit]
            document = {
                "id": repo,
                "sha": commit,
                "siblings": [_sibling(name, content) for name, content in files.items()],
                "cardData": {"license": self.served.licence},
                "tags": [],
            }
            self._send(200, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _resolve(self, repo: str, revision: str, name: str) -> None:
        commit = self._commit(repo, revision)
        if commit is None:
            return
        content = self.served.repos[repo][commit].get(name)
        if content is None or name in self.served.vanished:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        elif repo in self.served.gated:
            self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        elif name.endswith(LARGE):
            self._send(302, b"", {"Location": f"/stored/{repo}/{commit}/{name}", "X-Repo-Commit": commit})
        else:
            facts = {"X-Repo-Commit": commit, "ETag": f'"{_sibling(name, content)["blobId"]}"'}
            self._send(200, self.served.lies.get(name, content), facts)

    def _stored(self, repo: str, commit: str, name: str) -> None:
        content = self.served.lies.get(name, self.served.repos[repo][commit][name])
        asked = "" if self.served.ignores_ranges else self.headers.get("Range", "")
        wanted = re.fullmatch(r"bytes=(\d+)-", asked)
        start = int(wanted[1]) if wanted else 0
        facts = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        span = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if wanted else {}
        cut = self.served.cuts.pop(0) if self.served.cuts else None
        self._send(206 if wanted else 200, content[start:], {**facts, **span}, cut=cut)

    def _commit(self, repo: str, revision: str | None) -> str | None:
        """The commit; or, after an answer that says what is missing, None."""
        commits = self.served.repos.get(repo)
        if commits is None:
            self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
            return None
        commit = self.served.heads[repo] if revision in (None, "main") else revision
        if commit not in commits:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
            return None
        return commit

    def _send(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, *, cut: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True


def _sibling(name: str, content: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()
    facts = {"rfilename": name, "size": len(content), "blobId": blob}
    if name.endswith(LARGE):
        sha256 = hashlib.sha256(content).hexdigest()
        facts["lfs"] = {"size": len(content), "sha256": sha256, "pointerSize": 134}
    return facts
