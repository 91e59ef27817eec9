"""The content of a phrase, and the objects of a scene that it can refer to.

In: a scene and a `Description`. Out: indices of objects. Matching is generous: an object that nearly fits
(the second from the left by a small margin) is included. A single index therefore means that the description
is unambiguous.
"""

from collections.abc import Callable
from dataclasses import dataclass

from refdiff.miniature.scenes.scene import RenderedScene, SceneObject

SIDE_MARGIN = 0.12  # of the image width: least distance between an object and one to its left or right
DEPTH_MARGIN = 0.12  # of the image height: the same for up and down, front and back
_ALONE_LEFT = 0.42  # of the width: a single object is "left" only if its centre is within this
_LEFT_OF_FRAME = 0.58  # of the width: the leftmost of several is not "on the left" beyond this
_ALONGSIDE = 0.3  # of the height: objects farther apart in depth are not "left of" each other


@dataclass(frozen=True)
class Relation:
    """A relation to another object.

    Attributes:
        word: one of `RELATIONS`.
        anchor: index of the other object.
    """

    word: str
    anchor: int


@dataclass(frozen=True)
class Description:
    """Conditions on an object; an absent one is None.

    Attributes:
        kind: mug, ball and so on.
        colour: red, green and so on.
        size: "small", "medium" or "large".
        place: one of `PLACES`, among the objects that meet all the conditions above.
        relation: to another object.
    """

    kind: str | None = None
    colour: str | None = None
    size: str | None = None
    place: str | None = None
    relation: Relation | None = None


_Rank = Callable[[SceneObject, float, float], tuple[float, ...]]
"""Ranks objects for a place, by numbers relative to the image size, 0..1; the smallest is meant."""


def _left(item: SceneObject, width: float, _height: float) -> tuple[float, ...]:
    return (item.centre_xy[0] / width,)


def _right(item: SceneObject, width: float, _height: float) -> tuple[float, ...]:
    return (1.0 - item.centre_xy[0] / width,)


def _top(item: SceneObject, _width: float, height: float) -> tuple[float, ...]:
    # Standing point and visible centre must agree, or a tall thing in front would be both "front" and "top".
    return (item.centre_xy[1] / height, item.base_y / height)


def _bottom(item: SceneObject, _width: float, height: float) -> tuple[float, ...]:
    return (1.0 - item.centre_xy[1] / height, 1.0 - item.base_y / height)


_RANKS: dict[str, tuple[_Rank, float]] = {
    "left": (_left, SIDE_MARGIN),
    "right": (_right, SIDE_MARGIN),
    "top": (_top, DEPTH_MARGIN),
    "bottom": (_bottom, DEPTH_MARGIN),
    "back": (_top, DEPTH_MARGIN),
    "front": (_bottom, DEPTH_MARGIN),
}
PLACES: tuple[str, ...] = (*_RANKS, "middle")
RELATIONS: tuple[str, ...] = ("left of", "right of", "behind", "in front of", "next to")


def _size_yx(scene: RenderedScene) -> tuple[int, int]:
    return scene.image.shape[0], scene.image.shape[1]


def _middle(scene: RenderedScene, fits: list[int]) -> list[int]:
    """Return the second of three in a row; in less clear cases none or all of `fits`."""
    height, width = _size_yx(scene)
    if len(fits) == 1:
        x, y = scene.objects[fits[0]].centre_xy
        return fits if abs(x / width - 0.5) < 0.13 and abs(y / height - 0.5) < 0.3 else []
    ordered = sorted(fits, key=lambda index: scene.objects[index].centre_xy[0])
    if len(fits) % 2 == 0:
        return fits
    half = len(ordered) // 2
    before, own, after = (scene.objects[i].centre_xy[0] / width for i in ordered[half - 1 : half + 2])
    clear = min(own - before, after - own) >= SIDE_MARGIN and abs(own - 0.5) < 0.22
    return [ordered[half]] if clear else fits


def _at_place(scene: RenderedScene, fits: list[int], place: str) -> list[int]:
    if not fits:
        return []
    if place == "middle":
        return _middle(scene, fits)
    height, width = _size_yx(scene)
    rank, margin = _RANKS[place]
    ranks = {index: rank(scene.objects[index], width, height) for index in fits}
    limit = _ALONE_LEFT if len(fits) == 1 else _LEFT_OF_FRAME
    best = [min(values) for values in zip(*ranks.values(), strict=True)]
    nearly = [i for i in fits if any(value < low + margin for value, low in zip(ranks[i], best, strict=True))]
    if len(nearly) == 1 and ranks[nearly[0]][0] > limit:
        return []
    return nearly


def _gap(a: SceneObject, b: SceneObject) -> tuple[float, float]:
    """Return the empty pixels between two boxes, across and down; negative if they overlap."""
    across = max(a.box_xyxy[0], b.box_xyxy[0]) - min(a.box_xyxy[2], b.box_xyxy[2])
    down = max(a.box_xyxy[1], b.box_xyxy[1]) - min(a.box_xyxy[3], b.box_xyxy[3])
    return float(across), float(down)


def related(scene: RenderedScene, index: int, relation: Relation, slack: float = 0.0) -> bool:
    """Return whether object `index` has a relation to its anchor.

    Args:
        scene: the scene.
        index: the object.
        relation: the relation and its anchor.
        slack: 0 for clear cases only; 1 includes every case that some people would describe so.

    Returns:
        False for the anchor itself.
    """
    if index == relation.anchor:
        return False
    height, width = _size_yx(scene)
    item, anchor = scene.objects[index], scene.objects[relation.anchor]
    right: float = (item.centre_xy[0] - anchor.centre_xy[0]) / width
    nearer: float = (item.base_y - anchor.base_y) / height
    across, down = _gap(item, anchor)
    if relation.word in ("left of", "right of"):
        way = right if relation.word == "right of" else -right
        return way > SIDE_MARGIN * (1.0 - slack) and abs(nearer) < _ALONGSIDE * (1.0 + 2.0 * slack)
    if relation.word in ("behind", "in front of"):
        way = nearer if relation.word == "in front of" else -nearer
        reach = 0.2 * min(item.diameter_px, anchor.diameter_px)
        return way > 0.08 * (1.0 - slack) and way < 0.4 + slack and across < -reach + slack * 4.0 * reach
    near = 0.05 * width * (1.0 + 2.0 * slack)
    level = abs(nearer) < 0.18 * (1.0 + 2.0 * slack) and abs(right) > 0.1 * (1.0 - slack)
    return across < near and down < near and level


def matches(scene: RenderedScene, description: Description) -> tuple[int, ...]:
    """Find every object that a description can refer to.

    Args:
        scene: the scene.
        description: the conditions; `place` applies among the objects that meet kind, colour and size.

    Returns:
        Ascending indices into `scene.objects`; exactly one if the description is unambiguous.
    """
    fits = [
        index
        for index, item in enumerate(scene.objects)
        if description.kind in (None, item.kind)
        and description.colour in (None, item.colour)
        and description.size in (None, item.size)
    ]
    if description.place is not None:
        fits = _at_place(scene, fits, description.place)
    if description.relation is not None:
        relation = description.relation
        fits = [index for index in fits if related(scene, index, relation, slack=1.0)]
        if len(fits) == 1 and not related(scene, fits[0], relation):
            return ()
    return tuple(fits)
