"""Validate a dataset folder: every fault in one pass, and the numbers of the dataset.

Run as a module, it validates under resource limits for `isolation`, which guards against what hostile files
may do to an image decoder.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sam3_lora.coco.images import check_image
from sam3_lora.coco.layout import Split, find_layout
from sam3_lora.coco.limits import limit_process
from sam3_lora.coco.members import FolderMembers
from sam3_lora.coco.report import (
    DatasetIssueError,
    DatasetReport,
    Id,
    IssueCode,
    IssueLog,
    Place,
    Stats,
    quote,
)
from sam3_lora.coco.schema import CocoDataset, ValidationLimits, read

if TYPE_CHECKING:
    from collections.abc import Callable

FEW_IMAGES = 10
IMBALANCE_RATIO = 100
MAX_CATEGORIES_LISTED = 1000
PROGRESS_INTERVAL_S = 0.5


def validate(
    root: Path, limits: ValidationLimits | None = None, on_progress: Callable[[int, int], None] | None = None
) -> DatasetReport:
    """Check the dataset below `root`; `on_progress(done, total)` counts images.

    Decodes images in this process: for files of strangers use `isolation.validate_isolated`.
    """
    limits = limits or ValidationLimits()
    log = IssueLog()
    try:
        layout = find_layout(root)
    except DatasetIssueError as error:
        return DatasetReport.failed(error.issue)
    splits = layout.splits()
    places = {name: Place(log.add, _relative(split.annotations, root)) for name, split in splits.items()}
    datasets = {name: read(split.annotations, places[name], limits) for name, split in splits.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # decoders warn about what is reported here, or does not matter
        images = _ImageCheck(root, limits, on_progress, total=sum(len(each.images) for each in datasets.values()))
        for name, split in splits.items():
            images.check(name, split, datasets[name], places[name])
    images.compare_splits(places)
    _check_amounts(datasets["train"], len(images.digests["train"]), places["train"])
    for name, dataset in datasets.items():
        _check_crowds(dataset, places[name])
        if name != "train":
            _check_other_split(name, dataset, datasets["train"], places[name])
    return _report(log, datasets, images.duplicates)


class _ImageCheck:
    """Checks the image files of one split after the other, and remembers their contents."""

    def __init__(
        self, root: Path, limits: ValidationLimits, on_progress: Callable[[int, int], None] | None, total: int
    ) -> None:
        self.digests: defaultdict[str, dict[str, str]] = defaultdict(dict)  # split -> SHA-256 -> first file_name
        self.duplicates = 0
        self._members = FolderMembers(root)
        self._limits = limits
        self._on_progress = on_progress
        self._total = total
        self._done = 0

    def check(self, name: str, split: Split, dataset: CocoDataset, place: Place) -> None:
        """Report unusable and repeated images of a split."""
        digests = self.digests[name]
        for record in dataset.images.values():
            at = place.about(record.file_name)
            path = self._members.find(split.images, record.file_name)
            if path is not None:
                digest = check_image(path, record, self._limits, at)
                if digest in digests:
                    self.duplicates += 1
                    message = f"the same picture as {quote(digests[digest])}"
                    at.warn(IssueCode.DUPLICATE_IMAGE, message, "keep one of them, with all annotations")
                elif digest is not None:
                    digests[digest] = record.file_name
            elif record.file_name:
                message = f"{quote(record.file_name)} is not in the dataset"
                at.error(IssueCode.IMAGE_MISSING, message, self._members.explain(split.images, record.file_name))
            self._done += 1
            if self._on_progress is not None:
                self._on_progress(self._done, self._total)

    def compare_splits(self, places: dict[str, Place]) -> None:
        """Report pictures that are used both for training and for judging."""
        train = self.digests["train"]
        for name, place in places.items():
            for digest, file_name in self.digests[name].items():
                if name != "train" and digest in train:
                    at = place.about(file_name)
                    message = f"the same picture as {quote(train[digest])} of the training split"
                    hint = f"remove it from the training or the {name} split: results on it say nothing"
                    at.warn(IssueCode.TRAIN_VAL_OVERLAP, message, hint)


def _check_amounts(train: CocoDataset, usable_images: int, place: Place) -> None:
    """Report a training split with too little in it, or too unevenly."""
    if usable_images == 0:
        place.error(IssueCode.TOO_FEW_IMAGES, "there is no usable training image", "see the other issues")
    elif usable_images < FEW_IMAGES:
        message = f"there are only {usable_images} usable training images"
        place.warn(IssueCode.TOO_FEW_IMAGES, message, f"{FEW_IMAGES} or more give steadier results")
    if all(annotation.is_crowd for annotation in train.annotations):
        place.error(IssueCode.TOO_FEW_IMAGES, "the training split has no usable annotation", "annotate some objects")
        return
    instances = Counter(annotation.category_id for annotation in train.annotations)
    for category in train.categories.values():
        if category.id not in instances:
            message = f"category {quote(category.name)} has no annotation in the training split"
            place.warn(IssueCode.CLASS_IMBALANCE, message, "annotate some, or remove the category")
    (most, high), (least, low) = instances.most_common()[0], instances.most_common()[-1]
    if high > IMBALANCE_RATIO * low:
        names = quote(train.categories[most].name), quote(train.categories[least].name)
        message = f"category {names[0]} has {high:,} annotations, category {names[1]} only {low:,}"
        place.warn(IssueCode.CLASS_IMBALANCE, message, "add examples of the rare category")


def _check_crowds(dataset: CocoDataset, place: Place) -> None:
    """Report annotations that teach nothing, and those that would teach nothing if they were read to the letter."""
    crowds = sum(annotation.is_crowd for annotation in dataset.annotations)
    if crowds:
        count = f"{crowds:,} of {len(dataset.annotations):,} annotations"
        hint = "a crowd is several objects that nobody told apart; of a single object, iscrowd is 0"
        place.warn(IssueCode.CROWD_IGNORED, f"{count} are marked as crowds: nothing is learnt from them", hint)
    if dataset.crowds_as_objects:
        message = (
            f"{dataset.crowds_as_objects:,} masks are marked as crowds, as CVAT marks all; each is read as one object"
        )
        place.warn(IssueCode.CROWD_AS_OBJECT, message, "where a mask shows several objects, give each its own")


def _check_other_split(name: str, dataset: CocoDataset, train: CocoDataset, place: Place) -> None:
    """Report what keeps a validation or test split from judging the training."""
    if not dataset.annotations:
        place.warn(IssueCode.TOO_FEW_IMAGES, f"the {name} split has no usable annotation", "annotate some objects")
    known = {category.name for category in train.categories.values()}
    for category_id in {annotation.category_id: None for annotation in dataset.annotations}:
        category = dataset.categories[category_id]
        if category.name not in known:
            message = f"category {quote(category.name)} of the {name} split is not in the training split"
            place.warn(IssueCode.CATEGORY_UNKNOWN, message, "use the same category names in every split")


def _report(log: IssueLog, datasets: dict[str, CocoDataset], duplicates: int) -> DatasetReport:
    categories: dict[str, Id] = {}
    instances: Counter[str] = Counter()
    images: defaultdict[str, set[tuple[str, Id]]] = defaultdict(set)
    for split, dataset in datasets.items():
        for category in dataset.categories.values():
            categories.setdefault(category.name, category.id)
        for annotation in dataset.annotations:
            name = dataset.categories[annotation.category_id].name
            instances[name] += 1
            images[name].add((split, annotation.image_id))
    per_category = [
        {"id": category_id, "name": name, "instances": instances[name], "images": len(images[name])}
        for name, category_id in list(categories.items())[:MAX_CATEGORIES_LISTED]
    ]
    return log.report(
        Stats(per_category, _image_sizes(datasets), duplicates),
        images=sum(len(dataset.images) for dataset in datasets.values()),
        instances=instances.total(),
        categories=len(categories),
        images_without_annotations=sum(
            not dataset.annotations_of(image_id) for dataset in datasets.values() for image_id in dataset.images
        ),
    )


def _image_sizes(datasets: dict[str, CocoDataset]) -> dict[str, Any]:
    records = [record for dataset in datasets.values() for record in dataset.images.values() if record.width]
    if not records:
        return {}
    sides = {"width": [record.width for record in records], "height": [record.height for record in records]}
    return {
        name: {"min": min(values), "max": max(values), "median": statistics.median(values)}
        for name, values in sides.items()
    }


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def main() -> None:
    """Validate under limits: progress lines go to stdout, the report to a file."""
    parser = argparse.ArgumentParser(description="Validate a dataset folder under resource limits.")
    parser.add_argument("root", type=Path)
    parser.add_argument("--report", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--memory-bytes", type=int, required=True, help="address space")
    parser.add_argument("--cpu-s", type=int, required=True, help="processor time in seconds")
    parser.add_argument("--limits", type=json.loads, required=True, help="ValidationLimits as JSON")
    args = parser.parse_args()
    limit_process(memory_bytes=args.memory_bytes, cpu_s=args.cpu_s)
    report = validate(args.root, ValidationLimits(**args.limits), _print_progress())
    args.report.write_text(json.dumps(report.to_dict(), allow_nan=False), encoding="utf-8")


def _print_progress() -> Callable[[int, int], None]:
    last = 0.0

    def on_progress(done: int, total: int) -> None:
        """A closed pipe ends the process: nobody waits for the report."""
        nonlocal last
        if done == total or time.monotonic() - last >= PROGRESS_INTERVAL_S:
            last = time.monotonic()
            sys.stdout.write(f"{done} {total}\n")
            sys.stdout.flush()

    return on_progress


if __name__ == "__main__":
    main()
