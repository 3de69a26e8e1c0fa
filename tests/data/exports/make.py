"""Make these exports again, with the tools' own code where there is any: see README.md."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sam3_lora.synthetic.scenes import Scene, draw_scene

HERE = Path(__file__).parent
NAMES = ["heart", "cross"]
SIZE = 80


def scenes(count: int) -> list[Scene]:
    rng = np.random.default_rng(11)
    return [draw_scene(rng, size=SIZE, shapes=NAMES, count=(2, 3), radius=(0.14, 0.24)) for _ in range(count)]


def save(scene: Scene, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene.pixels).save(path, quality=75)


def flat(polygon: list[tuple[float, float]]) -> list[float]:
    return [round(min(max(value, 0.0), SIZE), 2) for point in polygon for value in point]


def cvat() -> None:
    """What CVAT's exporter asks of datumaro: outlines of hearts, brush masks of crosses, two subsets."""
    from datumaro.components.annotation import Bbox, LabelCategories, Mask, Polygon
    from datumaro.components.dataset import Dataset
    from datumaro.components.dataset_base import DatasetItem
    from datumaro.components.media import Image as Media

    items = []
    for number, scene in enumerate(scenes(6)):
        annotations: list[Any] = []
        for index, found in enumerate(scene.objects):
            options = {"label": NAMES.index(found.shape), "attributes": {"occluded": False}, "group": 0}
            if number == 5 and index == 0:
                left, top, right, bottom = found.box_xyxy
                annotations.append(Bbox(left, top, right - left, bottom - top, **options))
            elif found.shape == "heart":
                annotations.append(Polygon(flat(found.polygon), **options))
            else:
                annotations.append(Mask(found.mask.astype(np.uint8), **options))
        subset = "Train" if number < 4 else "Validation"
        media = Media.from_numpy(scene.pixels[..., ::-1].copy(), ext=".jpg")
        items.append(DatasetItem(f"frame_{number:06d}", subset=subset, media=media, annotations=annotations))
    categories = LabelCategories.from_iterable(NAMES)
    dataset = Dataset.from_iterable(items, categories={categories_type(): categories})
    shutil.rmtree(HERE / "cvat", ignore_errors=True)
    dataset.export(str(HERE / "cvat"), "coco_instances", save_media=True, merge_images=False)


def categories_type() -> Any:
    from datumaro.components.annotation import AnnotationType

    return AnnotationType.label


CONFIG = """
<View>
  <Image name="image" value="$image"/>
  <RectangleLabels name="box" toName="image"><Label value="heart"/><Label value="cross"/></RectangleLabels>
  <PolygonLabels name="outline" toName="image"><Label value="heart"/><Label value="cross"/></PolygonLabels>
  <BrushLabels name="brush" toName="image"><Label value="heart"/><Label value="cross"/></BrushLabels>
</View>
"""


def label_studio() -> None:
    """`COCO with images` of outlines and boxes, and `Brush labels to COCO`."""
    from label_studio_sdk.converter import brush
    from label_studio_sdk.converter.converter import Converter, Format

    with tempfile.TemporaryDirectory() as folder:
        uploads = Path(folder) / "media" / "upload"
        tasks = {"label-studio": [], "label-studio-brush": []}  # type: dict[str, list[dict[str, Any]]]
        for number, scene in enumerate(scenes(4)):
            name = f"{number:08x}-photo_{number}.jpg"
            save(scene, uploads / "1" / name)
            common = {"original_width": SIZE, "original_height": SIZE, "image_rotation": 0, "to_name": "image"}
            results, brushed = [], []
            for index, found in enumerate(scene.objects):
                percent = [value * 100 / SIZE for value in flat(found.polygon)]
                left, top, right, bottom = (value * 100 / SIZE for value in found.box_xyxy)
                if found.shape == "heart":
                    points = [list(point) for point in zip(percent[0::2], percent[1::2], strict=True)]
                    value = {"points": points, "polygonlabels": [found.shape], "closed": True}
                    results.append(
                        common | {"id": f"p{index}", "type": "polygonlabels", "from_name": "outline", "value": value}
                    )
                else:
                    value = {"x": left, "y": top, "width": right - left, "height": bottom - top, "rotation": 0,
                             "rectanglelabels": [found.shape]}  # fmt: skip
                    results.append(
                        common | {"id": f"b{index}", "type": "rectanglelabels", "from_name": "box", "value": value}
                    )
                rle = brush.mask2rle(found.mask.astype(np.uint8) * 255)
                value = {"format": "rle", "rle": rle, "brushlabels": [found.shape]}
                brushed.append(
                    common | {"id": f"m{index}", "type": "brushlabels", "from_name": "brush", "value": value}
                )
            for kind, result in (("label-studio", results), ("label-studio-brush", brushed)):
                annotation = {"id": number, "completed_by": 1, "was_cancelled": False, "result": result}
                tasks[kind].append(
                    {"id": number, "data": {"image": f"/data/upload/1/{name}"}, "annotations": [annotation]}
                )
        for kind, form in (("label-studio", Format.COCO_WITH_IMAGES), ("label-studio-brush", Format.BRUSH_TO_COCO)):
            shutil.rmtree(HERE / kind, ignore_errors=True)
            source = Path(folder) / f"{kind}.json"
            source.write_text(json.dumps(tasks[kind]))
            converter = Converter(CONFIG, folder, upload_dir=str(uploads), download_resources=True)
            converter.convert(str(source), str(Path(folder) / kind), form, is_dir=False)
            shutil.copytree(Path(folder) / kind, HERE / kind)


def roboflow() -> None:
    """The layout of `COCO Segmentation`, written here: the tool is a service."""
    root = HERE / "roboflow"
    shutil.rmtree(root, ignore_errors=True)
    made = scenes(6)
    for split, part in (("train", made[:4]), ("valid", made[4:5]), ("test", made[5:])):
        images, annotations = [], []
        for image_id, scene in enumerate(part):
            name = f"photo_{split}_{image_id}_jpg.rf.{image_id:032x}.jpg"
            save(scene, root / split / name)
            images.append({"id": image_id, "license": 1, "file_name": name, "height": SIZE, "width": SIZE,
                           "date_captured": "2026-11-26T20:00:00+00:00",
                           "extra": {"name": f"photo_{image_id}.jpg"}})  # fmt: skip
            for found in scene.objects:
                left, top, right, bottom = found.box_xyxy
                annotations.append(
                    {"id": len(annotations), "image_id": image_id, "category_id": NAMES.index(found.shape) + 1,
                     "bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top),
                     "segmentation": [flat(found.polygon)], "iscrowd": 0}
                )  # fmt: skip
        categories = [{"id": 0, "name": "shapes", "supercategory": "none"}]
        categories += [{"id": n, "name": name, "supercategory": "shapes"} for n, name in enumerate(NAMES, start=1)]
        info = {"year": "2026", "version": "1", "description": "Exported from roboflow.com", "contributor": "",
                "url": "https://public.roboflow.com/object-detection/undefined",
                "date_created": "2026-11-26T20:00:00+00:00"}  # fmt: skip
        licenses = [{"id": 1, "url": "https://creativecommons.org/licenses/by/4.0/", "name": "CC BY 4.0"}]
        body = {
            "info": info,
            "licenses": licenses,
            "categories": categories,
            "images": images,
            "annotations": annotations,
        }
        (root / split / "_annotations.coco.json").write_text(json.dumps(body))
    (root / "README.dataset.txt").write_text("# shapes > 2026-11-26\nhttps://universe.roboflow.com/\n")
    (root / "README.roboflow.txt").write_text("\nshapes - v1\n==============================\n")


def ultralytics() -> None:
    """The layout of the Ultralytics documentation, with a validation split and an image without objects."""
    root = HERE / "ultralytics"
    shutil.rmtree(root, ignore_errors=True)
    for number, scene in enumerate(scenes(5)):
        split = "train" if number < 4 else "val"
        save(scene, root / "images" / split / f"{number:012d}.jpg")
        labels = root / "labels" / split / f"{number:012d}.txt"
        labels.parent.mkdir(parents=True, exist_ok=True)
        lines = [
            f"{NAMES.index(found.shape)} " + " ".join(f"{value / SIZE:g}" for value in flat(found.polygon))
            for found in scene.objects
        ]
        if number:
            labels.write_text("\n".join(lines) + "\n")
    (root / "data.yaml").write_text(
        "path: shapes8-seg # dataset root dir\ntrain: images/train # train images (relative to 'path')\n"
        "val: images/val # val images (relative to 'path')\ntest: # test images (optional)\n\n"
        "names:\n  0: heart\n  1: cross\n"
    )


if __name__ == "__main__":
    for tool in sys.argv[1:]:
        {"cvat": cvat, "label-studio": label_studio, "roboflow": roboflow, "ultralytics": ultralytics}[tool]()
