"""The images that a model does worst on, as pictures: bare, with the truth, and with what base and tuned found."""

from __future__ import annotations

import io
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from pycocotools import mask as rle_codec

from sam3_lora.coco.overlay import draw_instances
from sam3_lora.data.images import read_rgb
from sam3_lora.errors import DatasetError
from sam3_lora.evaluation.exported import MIN_SCORE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from sam3_lora.evaluation.exported import EvaluatedModel

PANEL_WIDTH, PANEL_HEIGHT = 480, 640  # most pixels of an overlay
FRAME = 4  # pixels that a box without a mask is drawn with
LABELLED = 12  # in a picture with more objects, only mistakes are labelled
LABEL_LENGTH = 20


def worst_images(
    models: Mapping[str, EvaluatedModel], folder: Path, limit: int, transparent_color: Sequence[int]
) -> list[dict[str, Any]]:
    """The images with most mistakes of the tuned model first; of equal ones, those with the surest false alarm."""
    records = worst_first(models["tuned"])[: max(0, limit)]
    return [image_row(models, record, folder, transparent_color) for record in records]


def worst_first(model: EvaluatedModel) -> list[dict[str, Any]]:
    """The images by this model's mistakes."""
    missed, false_alarms = model.mistakes
    mistakes: Counter[int] = Counter()
    surest: dict[int, float] = {}
    for annotation in model.truth["annotations"]:
        mistakes[annotation["image_id"]] += annotation["id"] in missed
    for number, entry in enumerate(model.predictions, start=1):
        if number in false_alarms:
            mistakes[entry["image_id"]] += 1
            surest[entry["image_id"]] = max(surest.get(entry["image_id"], 0.0), entry["score"])

    def badness(image: Mapping[str, Any]) -> tuple[float, ...]:
        return -mistakes[image["id"]], -surest.get(image["id"], 0.0), image["id"]

    return sorted(model.truth["images"], key=badness)


def image_row(
    models: Mapping[str, EvaluatedModel], record: Mapping[str, Any], folder: Path, transparent_color: Sequence[int]
) -> dict[str, Any]:
    """One image: its figures, what is in it, and the picture of each panel (None where it cannot be read)."""
    names = {category["id"]: str(category["name"]) for category in models["tuned"].truth["categories"]}
    tuned = models["tuned"]
    objects = [a for a in tuned.truth["annotations"] if a["image_id"] == record["id"]]
    shown = {"truth": [(a, a["id"] in tuned.mistakes[0], "crowd" if a["iscrowd"] else "missed") for a in objects]}
    for name, model in models.items():
        numbered = enumerate(model.predictions, start=1)
        own = [(number, p) for number, p in numbered if p["image_id"] == record["id"] and p["score"] >= MIN_SCORE]
        shown[name] = [(p, number in model.mistakes[1], "false") for number, p in own]
    row: dict[str, Any] = {
        "file_name": record["file_name"],
        "objects": sum(not a["iscrowd"] for a in objects),
        "missed": {name: sum(a["id"] in model.mistakes[0] for a in objects) for name, model in models.items()},
        "false_alarms": {name: sum(wrong for _, wrong, _ in shown[name]) for name in models},
        "categories": _by_category(shown, names),
        "instances": {name: [_instance(entry, names) for entry, _, _ in entries] for name, entries in shown.items()},
        "panels": None,
        "unreadable": "",
    }
    try:
        size = (record["width"], record["height"])
        pixels = _fitted(read_rgb(folder / record["file_name"], transparent_color=transparent_color, size=size))
    except DatasetError as error:
        row["unreadable"] = "" if error.__cause__ else str(error)  # other causes name this machine's folders
    else:
        pictured = {"image": [], **shown}
        row["panels"] = {name: _panel(pixels, size, entries, names) for name, entries in pictured.items()}
    return row


def _instance(entry: Mapping[str, Any], names: Mapping[int, str]) -> dict[str, Any]:
    return {"category": names[entry["category_id"]], "score": entry.get("score")}


def _by_category(
    shown: Mapping[str, Sequence[tuple[Mapping[str, Any], bool, str]]], names: Mapping[int, str]
) -> list[dict[str, Any]]:
    """What the tuned model got wrong, the worst category first, with its sign in the pictures."""
    missed = Counter(a["category_id"] for a, wrong, _ in shown["truth"] if wrong)
    false_alarms = Counter(p["category_id"] for p, wrong, _ in shown["tuned"] if wrong)
    return [
        {"name": names[c], "sign": _sign(c, names), "missed": missed[c], "false_alarms": false_alarms[c]}
        for c, _ in (missed + false_alarms).most_common()
    ]


def _sign(category: int, names: Mapping[int, str]) -> str:
    """The name, where the picture's font has its letters and it is short; else the category's number."""
    name = " ".join(names[category].split())
    drawable = all(ord(letter) < 0x180 and letter.isprintable() for letter in name)
    return name if drawable and 0 < len(name) <= LABEL_LENGTH else f"#{category}"


def _fitted(pixels_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = pixels_HW3.shape[:2]
    scale = min(PANEL_WIDTH / width, PANEL_HEIGHT / height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(pixels_HW3).resize(size, Image.Resampling.LANCZOS))


def _panel(
    pixels_HW3: NDArray[np.uint8],
    size: tuple[int, int],
    entries: Sequence[tuple[Mapping[str, Any], bool, str]],
    names: Mapping[int, str],
) -> dict[str, Any]:
    """A picture of these objects as a JPEG file, and its size."""
    masks, labels = [], []
    for entry, wrong, word in entries:
        masks.append(_small_mask(entry, size, pixels_HW3.shape[:2]))
        score = f" {entry['score']:.2f}" if "score" in entry else ""
        text = f"{_sign(entry['category_id'], names)}{score}{f' {word}' if wrong or word == 'crowd' else ''}"
        labels.append(text if wrong or len(entries) <= LABELLED else "")
    colours = [entry["category_id"] for entry, _, _ in entries]
    width = pixels_HW3.shape[1]
    written = io.BytesIO()
    draw_instances(pixels_HW3, masks, labels, colours, width=width).save(written, format="JPEG", quality=82)
    return {"jpeg": written.getvalue(), "width": width, "height": pixels_HW3.shape[0]}


def _small_mask(entry: Mapping[str, Any], size: tuple[int, int], shape_HW: tuple[int, ...]) -> NDArray[np.bool_]:
    """The entry's mask, or the frame of its box, at the picture's size."""
    height, width = shape_HW
    if "segmentation" in entry:
        turned = Image.fromarray(rle_codec.decode(entry["segmentation"]).T * np.uint8(255))  # columns lie together
        return np.asarray(turned.resize((height, width), Image.Resampling.BILINEAR)).T > 127
    left, top, box_width, box_height = entry["bbox"]
    x = np.array([left, left + box_width]) * width / size[0]
    y = np.array([top, top + box_height]) * height / size[1]
    (left, right), (top, bottom) = x.round().astype(int).clip(0, width), y.round().astype(int).clip(0, height)
    frame = np.zeros(shape_HW, dtype=bool)
    frame[top:bottom, left:right] = True
    frame[top + FRAME : max(0, bottom - FRAME), left + FRAME : max(0, right - FRAME)] = False
    return frame
