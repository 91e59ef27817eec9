"""Drive a real Label Studio against `refdiff serve`.

Label Studio is started by hand, in an environment of its own, since its versions of packages differ. Its
newer releases refuse backends at the loopback address unless they are configured otherwise:

    export ML_BLOCK_LOCAL_IP=false SSRF_PROTECTION_ENABLED=false
    label-studio start --no-browser --port 8091 --username a@example.com --password ... --user-token TOKEN
    refdiff serve mini --label-studio-url http://127.0.0.1:8091 --label-studio-token TOKEN
    python -m benchmarks.label_studio http://127.0.0.1:8091 TOKEN http://127.0.0.1:8000

The script makes a project, uploads a rendered scene, attaches the backend, opens the task and asks for two
phrases as the labeling interface does; with --import FOLDER it also imports `tasks.json` of
`refdiff segment --export label-studio`. What came back is recorded in benchmarks/results/label-studio.json.
"""

from __future__ import annotations

import argparse
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks.records import RESULTS, add_entry
from refdiff.loading import load
from refdiff.miniature.scenes import render_scene
from refdiff.runtime.image import png
from refdiff.runtime.masks import to_brush_rle

PHRASES = ("the mug", "the thing on the left")
CONFIG = """<View>
  <Image name="image" value="$image"/>
  <TextArea name="prompt" toName="image" editable="true" showSubmitButton="true"/>
  <BrushLabels name="mask" toName="image"><Label value="thing"/><Label value="mug"/></BrushLabels>
</View>"""


class LabelStudio:
    """Its API, as a user with a token.

    Args:
        url: of Label Studio.
        token: of the user.
    """

    def __init__(self, url: str, token: str) -> None:
        self._url, self._token = url.rstrip("/"), token

    def ask(self, path: str, body: Any = None, *, kind: str = "application/json", method: str = "") -> Any:
        """Send a request and return the document of its answer, or status and text of an error."""
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        head = {"Authorization": f"Token {self._token}", "Content-Type": kind}
        request = urllib.request.Request(  # noqa: S310 - the address is the caller's
            self._url + path, data, head, method=method or ("GET" if data is None else "POST")
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:  # noqa: S310 - as above
                text = answer.read()
        except urllib.error.HTTPError as error:
            return {"status": error.code, "error": error.read().decode(errors="replace")[:600]}
        return json.loads(text) if text else None

    def get_bytes(self, path: str) -> bool:
        """Return whether a path serves an image."""
        request = urllib.request.Request(self._url + path, headers={"Authorization": f"Token {self._token}"})  # noqa: S310 - as above
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310 - as above
            return bool(answer.read(8)[1:4] in (b"PNG", b"\xd8\xff\xe0"))

    def upload(self, project: int, name: str, file: bytes) -> Any:
        """Import an image as a task."""
        part = f'--B\r\ncontent-disposition: form-data; name="file"; filename="{name}"\r\n'
        body = part.encode() + b"content-type: image/png\r\n\r\n" + file + b"\r\n--B--\r\n"
        return self.ask(f"/api/projects/{project}/import", body, kind="multipart/form-data; boundary=B")


def phrase_context(phrase: str) -> dict[str, Any]:
    """Return the context that the labeling interface sends when a phrase is added."""
    value = {"text": [phrase]}
    names = {"from_name": "prompt", "to_name": "image", "type": "textarea", "origin": "manual"}
    return {"annotation_id": None, "draft_id": 0, "result": [{"id": "p1", **names, "value": value}]}


def drive(studio: LabelStudio, backend: dict[str, Any]) -> dict[str, Any]:
    """Make a project, attach the backend, open the task and ask; return what is worth a record."""
    scene = render_scene(3)
    bad = studio.ask("/api/projects", {"title": "without a prompt", "label_config": "<View></View>"})
    refused = studio.ask("/api/ml", {**backend, "project": bad["id"], "title": "refdiff"})
    project = studio.ask("/api/projects", {"title": "refdiff", "label_config": CONFIG})["id"]
    studio.upload(project, "scene.png", png(scene.image))
    attached = studio.ask("/api/ml", {**backend, "project": project, "title": "r", "is_interactive": True})
    if "id" not in attached:
        raise SystemExit(f"the backend was not attached: {attached}")
    task = studio.ask(f"/api/tasks?project={project}")["tasks"][0]
    opened = studio.ask(f"/api/tasks/{task['id']}?project={project}")
    found = {}
    with load("mini") as segmenter:
        for phrase in PHRASES:
            context = {"task": task["id"], "context": phrase_context(phrase)}
            answer = studio.ask(f"/api/ml/{attached['id']}/interactive-annotating", context)
            (region,) = answer["data"]["result"]
            saved = studio.ask(f"/api/tasks/{task['id']}/annotations", {"result": [region]})
            expected = to_brush_rle(segmenter.segment(scene.image, phrase).mask)
            found[phrase] = {
                "label": region["value"]["brushlabels"],
                "is_the_mask_of_the_pipeline": region["value"]["rle"] == list(expected),
                "saved_as_annotation": "id" in saved,
            }
    return {
        "refusal_of_an_empty_interface": refused.get("error", refused),
        "image": task["data"]["image"].rpartition("/")[0] + "/…",
        "predictions_after_opening": len(opened["predictions"]),
        "phrases": found,
        "versions": studio.ask(f"/api/ml/{attached['id']}/versions"),
        "state": studio.ask(f"/api/ml/{attached['id']}").get("state"),
    }


def import_tasks(studio: LabelStudio, folder: Path) -> dict[str, Any]:
    """Import an exported data set, with its local storage; return what Label Studio made of it."""
    config = (folder / "label_config.xml").read_text(encoding="utf-8")
    project = studio.ask("/api/projects", {"title": "exported", "label_config": config})["id"]
    storage = {"project": project, "path": str(folder.resolve() / "images"), "use_blob_urls": True}
    stored = studio.ask("/api/storages/localfiles", storage)
    tasks = json.loads((folder / "tasks.json").read_text(encoding="utf-8"))
    answer = studio.ask(f"/api/projects/{project}/import", tasks)
    listed = studio.ask(f"/api/tasks?project={project}&fields=all")["tasks"]
    shown = studio.get_bytes(listed[0]["data"]["image"])
    return {
        "storage": "id" in stored or stored,
        "tasks": answer.get("task_count", answer),
        "predictions": answer.get("prediction_count"),
        "first_image_is_served": shown,
    }


def main() -> None:
    """Drive Label Studio, and record what came back."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("url", "token", "backend"):
        parser.add_argument(name)
    parser.add_argument("--backend-token")
    parser.add_argument("--import", dest="folder", type=Path)
    given = parser.parse_args()
    studio = LabelStudio(given.url, given.token)
    backend = {"url": given.backend}
    if given.backend_token:
        user = {"basic_auth_user": "label-studio", "basic_auth_pass": given.backend_token}
        backend = {**backend, "auth_method": "BASIC_AUTH", **user}
    entry = {"label_studio": studio.ask("/api/version")["release"], **drive(studio, backend)}
    if given.folder is not None:
        entry["import"] = import_tasks(studio, given.folder)
    add_entry(RESULTS / "label-studio.json", "label-studio", entry)


if __name__ == "__main__":
    main()
