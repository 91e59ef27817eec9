"""The costs of a sensitivity report as a picture: one bar per block, costliest on top."""

from __future__ import annotations

import io

from PIL import Image, ImageDraw, ImageFont

from refdiff.api.block_costs import SensitivityReport

_ROW, _MARGIN, _LABEL, _BAR, _VALUE = 22, 24, 330, 420, 70  # px
_PAGE, _INK, _PALE = (250, 250, 251), (28, 29, 34), (150, 154, 166)
_LOSS, _GAIN = (190, 70, 60), (70, 130, 90)


def draw_costs(report: SensitivityReport) -> bytes:
    """A PNG: to the right of the line what is lost, to the left what happened to be gained."""
    width = 2 * _MARGIN + _LABEL + _BAR + _VALUE
    height = 2 * _MARGIN + _ROW * (len(report.costs) + 2)
    page = Image.new("RGB", (width, height), _PAGE)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    title = (
        f"{report.type}: points of mIoU lost by each block alone "
        f"({report.count} scenes, {report.profile}; half precision: {report.half_miou:.3f})"
    )
    draw.text((_MARGIN, _MARGIN), title, fill=_INK, font=font)
    losses = [max(cost.cost_points, 0.0) for cost in report.costs]
    gains = [max(-cost.cost_points, 0.0) for cost in report.costs]
    span = (max(losses, default=0.0) + max(gains, default=0.0)) or 1.0
    zero = _MARGIN + _LABEL + _BAR * max(gains, default=0.0) / span
    top = _MARGIN + 2 * _ROW
    draw.line([(zero, top - 4), (zero, top + _ROW * len(report.costs))], fill=_PALE)
    for number, cost in enumerate(report.costs):
        y = top + number * _ROW
        end = zero + _BAR * cost.cost_points / span
        box = [min(zero, end), y + 4, max(zero, end), y + _ROW - 5]
        draw.rectangle(box, fill=_LOSS if cost.cost_points > 0 else _GAIN)
        draw.text((_MARGIN, y + 2), f"{cost.graph}   {cost.block}", fill=_INK, font=font)
        place = (_MARGIN + _LABEL + _BAR + 10, y + 2)
        draw.text(place, f"{cost.cost_points:+.2f}", fill=_INK, font=font)
    buffer = io.BytesIO()
    page.save(buffer, format="PNG")
    return buffer.getvalue()
