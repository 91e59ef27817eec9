"""The demo's contact sheet."""

from pathlib import Path

import refdiff
from refdiff.batch.demo import SheetEntry, contact_sheet
from refdiff.data.synthetic import HELD_OUT_FROM
from refdiff.miniature.scenes import render_scene


def test_a_sheet_shows_every_entry_and_survives_a_mode_without_a_map(mini_bundle: Path) -> None:
    with refdiff.load(mini_bundle, options=refdiff.RunOptions(mode="disc+seg")) as segmenter:
        image = render_scene(HELD_OUT_FROM).image
        result = segmenter.segment(segmenter.encode(image), "the left block")
    entries = [SheetEntry(image=image, result=result, iou=0.5)] * 3
    one, three = contact_sheet(entries[:1]), contact_sheet(entries)
    assert three.shape[0] > one.shape[0]
    assert three.shape[1] > one.shape[1]
