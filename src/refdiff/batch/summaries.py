"""What describes a whole folder run: the page of its results, and a COCO file.

The page is a contact sheet with filter and order, for results that lie next to it. Its template `index.html`
holds style and script; nothing is loaded from elsewhere. Every text is escaped, so none can contain the
template's markers. Images are loaded as they come into view.

In the COCO file, phrases are categories. An image whose phrases have no mask is listed without annotations;
one that failed is left out, because COCO has no way to say that nothing is known about it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from refdiff.contracts.atomic_io import report_write_errors, write_file
from refdiff.contracts.manifest import refdiff_version


def write_index(
    path: Path, lines: Iterable[Mapping[str, Any]], *, title: str, notes: Sequence[str] = ()
) -> None:
    """Write the page of a run.

    Args:
        path: of the page; the files that the lines name are next to it.
        lines: of `results.jsonl`.
        title: of the page.
        notes: lines below the title, such as what was skipped.

    Raises:
        InputError: the file cannot be written.
    """
    with report_write_errors(path):
        write_file(path, index_page(list(lines), title=title, notes=notes).encode("utf-8", errors="replace"))


def index_page(lines: Sequence[Mapping[str, Any]], *, title: str, notes: Sequence[str] = ()) -> str:
    """Return the page as one HTML document; see `write_index`."""
    shared = _shared_cautions(lines)
    parts = {
        "title": escape(title),
        "notes": "\n".join(f"<p>{escape(note)}</p>" for note in notes),
        "cautions": _cautions(shared),
        "cards": "\n".join(_card(number, line, shared) for number, line in enumerate(lines)),
    }
    page = resources.files("refdiff.batch").joinpath("index.html").read_text(encoding="utf-8")
    for name, part in parts.items():
        page = page.replace(f"<!-- {name} -->", part)
    return page


def _shared_cautions(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the cautions that every answer has: they are shown once, above all."""
    answers = [list(line.get("cautions", ())) for line in lines if "error" not in line]
    return [each for each in answers[0] if all(each in others for others in answers)] if answers else []


def _card(number: int, line: Mapping[str, Any], shared: Sequence[str]) -> str:
    image, phrase = escape(line["image"]), escape(line["phrase"])
    heading = f'<h2>{phrase}</h2>\n<p class="file">{image}</p>'
    if "error" in line:
        kind, score, picture = "failed", None, '<div class="frame"></div>'
        facts = f'<p class="bad">failed: {escape(line["error"])}</p>'
    else:
        kind, score = ("mask" if line["matched"] else "none"), line["score"]
        links = {each: quote(path) for each, path in line["files"].items()}
        picture = (
            f'<a class="frame" href="{links["overlay"]}"><img loading="lazy" decoding="async" '
            f'src="{links["thumbnail"]}" alt="{phrase} on {image}"></a>'
        )
        facts = _facts(line, links) + _cautions(
            [each for each in line.get("cautions", ()) if each not in shared]
        )
    order = "" if score is None else f' data-score="{score:.6f}"'
    return f'<article id="r{number}" data-kind="{kind}"{order}>\n{picture}\n{heading}\n{facts}\n</article>'


def _facts(line: Mapping[str, Any], links: Mapping[str, str]) -> str:
    found = f"score {line['score']:.3f}" if line["matched"] else f"no mask: {escape(line['reason'] or '')}"
    return f'<p>{found} · <a href="{links["mask"]}">mask</a> · <a href="{links["record"]}">record</a></p>'


def _cautions(cautions: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(each)}</li>" for each in cautions)
    return f'<ul class="cautions">{items}</ul>' if items else ""


def write_coco(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write the COCO file of a run.

    Args:
        path: of the file.
        lines: of `results.jsonl`.

    Raises:
        InputError: the file cannot be written.
    """
    with report_write_errors(path):
        write_file(path, json.dumps(coco_document(lines), allow_nan=False) + "\n")


def coco_document(lines: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the document: masks as compressed run lengths, boxes as x, y, width, height in px.

    Args:
        lines: of `results.jsonl`; those of failures are left out.
    """
    images: dict[str, dict[str, Any]] = {}
    categories: dict[str, int] = {}
    annotations: list[dict[str, Any]] = []
    for line in lines:
        if "error" in line:
            continue
        image = images.setdefault(
            line["image"], {"id": len(images) + 1, "file_name": line["image"], **line["size"]}
        )
        category = categories.setdefault(line["phrase"], len(categories) + 1)
        if not line["matched"]:
            continue
        left, top, right, bottom = line["box_xyxy_px"]
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": image["id"],
                "category_id": category,
                "segmentation": line["mask"],
                "area": line["area_px"],
                "bbox": [left, top, right - left + 1, bottom - top + 1],
                "iscrowd": 0,
                "score": line["score"],
            }
        )
    return {
        "info": {"description": "masks of refdiff, one category per phrase", "version": refdiff_version()},
        "licenses": [],
        "images": list(images.values()),
        "categories": [
            {"id": number, "name": phrase, "supercategory": "phrase"} for phrase, number in categories.items()
        ],
        "annotations": annotations,
    }
