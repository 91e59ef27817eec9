"""Rendered scenes in the layouts of published data sets, with the oddities that those have.

Annotations take turns: polygons in several parts, uncompressed and compressed run lengths, a crowd. Refs name
an image file that exists nowhere (the annotation's number is in it), as RefCOCO's do.
"""

import io
import json
import struct
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as coco

from refdiff.miniature.scenes import refer, render_scene


def python2_pickle(value):
    """Pickle lists, dictionaries, numbers and texts as Python 2 does: text as byte strings."""
    return b"\x80\x02" + _opcodes(value) + b"."


def _opcodes(value):
    if isinstance(value, str):
        data = value.encode("latin1")
        return b"T" + struct.pack("<i", len(data)) + data
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, list):
        return b"](" + b"".join(map(_opcodes, value)) + b"e"
    return b"}(" + b"".join(_opcodes(key) + _opcodes(each) for key, each in value.items()) + b"u"


def polygons_of(mask):
    """Trace the outlines of a mask; each part becomes a polygon."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    polygons = [contour.reshape(-1).astype(float).tolist() for contour in contours if len(contour) >= 3]
    y, x = (int(axis[0]) for axis in np.nonzero(mask))
    return polygons or [[x, y, x + 1.0, y, x + 1.0, y + 1.0]]


def segmentation_of(mask, turn):
    """Encode a mask in one of the forms of COCO."""
    if turn % 3 == 0:
        return polygons_of(mask)
    compressed = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    if turn % 3 == 1:
        return {"size": list(mask.shape), "counts": compressed["counts"].decode()}
    flat = mask.ravel(order="F")
    runs = np.diff(np.concatenate(([0], np.flatnonzero(np.diff(flat)) + 1, [flat.size]))).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if flat[0] else runs}


def tables_of(seeds, split, scale=1):
    """Render scenes, and return COCO's images and annotations, the refs, and the pixels by file name.

    Args:
        seeds: of the scenes.
        split: of the refs.
        scale: images and masks are enlarged by it.
    """
    images, annotations, refs, pixels = [], [], [], {}
    for seed in seeds:
        scene = render_scene(seed)
        name = f"COCO_train2014_{seed:012d}.png"
        pixels[name] = _enlarge(scene.image, scale)
        height, width = pixels[name].shape[:2]
        images.append({"id": seed, "file_name": name, "height": height, "width": width})
        phrases = {each.target: each.phrase for each in refer(scene, np.random.default_rng(seed))}
        for index, mask in enumerate(_enlarge(each, scale) for each in scene.masks):
            number = 100 * seed + index
            turn = len(annotations)
            segmentation = segmentation_of(mask, turn)
            annotations.append(
                {
                    "id": number,
                    "image_id": seed,
                    "category_id": 1,
                    "segmentation": segmentation,
                    "iscrowd": int(isinstance(segmentation, dict)),
                    "area": int(mask.sum()),
                    "bbox": [0.0, 0.0, 1.0, 1.0],
                }
            )
            if index in phrases:
                refs.append(
                    {
                        "ref_id": number,
                        "ann_id": number,
                        "image_id": seed,
                        "category_id": 1,
                        "file_name": f"COCO_train2014_{seed:012d}_{number}.jpg",
                        "split": split,
                        "sent_ids": [2 * number, 2 * number + 1],
                        "sentences": [
                            {"sent_id": 2 * number + at, "sent": text, "raw": text, "tokens": text.split()}
                            for at, text in enumerate((phrases[index], f"{phrases[index]} please"))
                        ],
                    }
                )
    return images, annotations, refs, pixels


def _enlarge(pixels, scale):
    return pixels.repeat(scale, axis=0).repeat(scale, axis=1)


def write_images(folder, pixels):
    """Write the images as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in pixels.items():
        Image.fromarray(image).save(folder / name)


def write_refer_tree(root: Path, splits, *, data_set="refcoco", split_by="unc", scale=1):
    """Write a REFER tree; `splits` maps a split to seeds, and images are enlarged by `scale`."""
    folder = root / data_set
    folder.mkdir(parents=True)
    instances, refs = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "thing"}]}, []
    for split, seeds in splits.items():
        images, annotations, some, pixels = tables_of(seeds, split, scale)
        instances["images"] += images
        instances["annotations"] += annotations
        refs += some
        write_images(root / "images" / "mscoco" / "images" / "train2014", pixels)
    (folder / "instances.json").write_text(json.dumps(instances))
    (folder / f"refs({split_by}).p").write_bytes(python2_pickle(refs))
    return instances, refs


def write_grefcoco(root: Path, seeds, split="val"):
    """Write gRefCOCO: every third sentence refers to nothing, the others to one or two objects."""
    folder = root / "grefcoco"
    folder.mkdir(parents=True)
    images, annotations, refs, pixels = tables_of(seeds, split)
    by_image = {
        image["id"]: [each["id"] for each in annotations if each["image_id"] == image["id"]]
        for image in images
    }
    for at, ref in enumerate(refs):
        others = [each for each in by_image[ref["image_id"]] if each != ref["ann_id"]]
        ref["ann_id"] = [[-1], [ref["ann_id"]], [ref["ann_id"], *others[:1]]][at % 3]
        ref["no_target"] = ref["ann_id"] == [-1]
    write_images(root / "images" / "train2014", pixels)
    instances = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "instances.json").write_text(json.dumps(instances))
    (folder / "grefs(unc).json").write_text(json.dumps(refs))
    return instances, refs


def write_reason_seg(root: Path, seeds, split="val"):
    """Write ReasonSeg: a target, an ignored shape, and a deprecated flag in each image."""
    folder = root / "ReasonSeg" / split
    folder.mkdir(parents=True)
    for seed in seeds:
        scene = render_scene(seed)
        Image.fromarray(scene.image).save(folder / f"{seed}.jpg", quality=95)
        shapes = [
            {"label": label, "points": np.reshape(polygons_of(scene.masks[index])[0], (-1, 2)).tolist()}
            for index, label in enumerate(("target", "ignore"))
        ]
        shapes.append({"label": "flag", "points": [[0, 0]]})
        document = {
            "text": ["the thing one would drink from", "another"],
            "is_sentence": True,
            "shapes": shapes,
        }
        data = json.dumps(document, ensure_ascii=False).replace("thing", "thing\u2019s").encode("cp1252")
        (folder / f"{seed}.json").write_bytes(data)


def write_benchmark_table(path: Path, seeds, split="val"):
    """Write a table in the form of jxu124/refcoco-benchmark: images inside."""
    import pyarrow
    from pyarrow import parquet

    images, annotations, refs, pixels = tables_of(seeds, split)
    rows = []
    for image in images:
        stream = io.BytesIO()
        Image.fromarray(pixels[image["file_name"]]).save(stream, "PNG")
        by_id = {each["id"]: each for each in annotations}
        mine = [
            {
                "ref_info": ref,
                "ann_info": {**by_id[ref["ann_id"]], "segmentation": _flat(by_id[ref["ann_id"]])},
                "image_info": image,
            }
            for ref in refs
            if ref["image_id"] == image["id"]
        ]
        rows.append({"ref_list": mine, "image": {"bytes": stream.getvalue(), "path": image["file_name"]}})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_ref_table(root: Path, seeds, split="val", name="validation"):
    """Write a table in the form of jxu124/refcoco: annotations as JSON, images next to it."""
    import pyarrow
    from pyarrow import parquet

    images, annotations, refs, pixels = tables_of(seeds, split)
    by_id = {each["id"]: each for each in (*annotations, *images)}
    rows = [
        {
            "ref_id": ref["ref_id"],
            "split": split,
            "sentences": ref["sentences"],
            "raw_anns": json.dumps(by_id[ref["ann_id"]]),
            "raw_image_info": json.dumps(by_id[ref["image_id"]]),
            "image_path": f"coco/train2014/{by_id[ref['image_id']]['file_name']}",
        }
        for ref in refs
    ]
    write_images(root / "coco" / "train2014", pixels)
    path = root / "refcocoplus" / "data" / f"{name}-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def _flat(annotation):
    """Return polygons whatever the form: the hub's table has no other."""
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        return segmentation
    encoded = segmentation
    if isinstance(segmentation["counts"], list):
        encoded = coco.frPyObjects(segmentation, *segmentation["size"])
    return polygons_of(coco.decode(encoded).astype(bool))
