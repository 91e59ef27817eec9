"""A Label Studio that serves images, and the requests that one sends to an ML backend.

The requests were written after `MLApi` of label-studio 1.23 (`ml/api_connector.py`).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONFIG = """<View>
  <Style>.prompt { color: red }</Style>
  <Image name="image" value="$image"/>
  <View className="prompt"><TextArea name="prompt" toName="image" editable="true"/></View>
  <BrushLabels name="mask" toName="image">
    <Label value="cup"/><Label value="red mug"/>
  </BrushLabels>
</View>"""


def setup_request(schema=CONFIG):
    return {
        "project": "1.1790000000",
        "schema": schema,
        "hostname": "http://attacker.invalid:1",
        "access_token": "0123456789abcdef0123456789abcdef01234567",
        "extra_params": None,
    }


def predict_request(image, *texts, name="prompt", config=CONFIG, tasks=1, context=None):
    """Return the request of a task that is opened, or with texts that of an interaction."""
    if texts:
        result = {
            "id": "Yb2cQ9",
            "from_name": name,
            "to_name": "image",
            "type": "textarea",
            "origin": "manual",
            "value": {"text": list(texts)},
        }
        context = {"annotation_id": None, "draft_id": 0, "user_id": None, "result": [result]}
    task = {
        "id": 7,
        "data": {"image": image},
        "project": 1,
        "drafts": [],
        "predictions": [],
        "annotations": [],
    }
    return {
        "tasks": [task] * tasks,
        "project": "1.1790000000",
        "label_config": config,
        "params": {"login": None, "password": None, "context": context},
    }


class FakeLabelStudio:
    """What it has been asked, and how it answers."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.redirects: dict[str, str] = {}
        self.authorization: str | None = None
        self.refresh: str | None = None
        self.access: list[str] = []
        self.cut_short = False
        self.url = ""

    def answer(self, path: str, given: str | None) -> tuple[int, bytes, str | None]:
        """Return status, body and location of the answer to a GET."""
        self.asked.append((path, given))
        wanted = f"Bearer {self.access[-1]}" if self.access else self.authorization
        if wanted is not None and given != wanted:
            return 401, b"who are you", None
        if path in self.redirects:
            return 302, b"", self.redirects[path]
        if path in self.files:
            return 200, self.files[path], None
        return 404, b"no such file", None


class _Handler(BaseHTTPRequestHandler):
    fake: FakeLabelStudio

    def do_GET(self):
        self.send(*self.fake.answer(self.path, self.headers.get("authorization")))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.fake.asked.append((self.path, None))
        if self.path != "/api/token/refresh" or body.get("refresh") != self.fake.refresh:
            self.send(401, b"{}")
            return
        self.fake.access.append(f"access{len(self.fake.access)}")
        self.send(200, json.dumps({"access": self.fake.access[-1]}).encode())

    def send(self, status, body, location=None):
        self.send_response(status)
        if location is not None:
            self.send_header("location", location)
        self.send_header("content-length", str(len(body) + 10 * self.fake.cut_short))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def label_studio() -> Iterator[FakeLabelStudio]:
    """Run one on the loopback address."""
    fake = FakeLabelStudio()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"fake": fake}))
    fake.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        thread.join(20)
        server.server_close()
