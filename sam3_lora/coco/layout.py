"""Find the splits of a dataset folder: which annotation file belongs to which images."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sam3_lora.coco.dialects import file_in_dataset
from sam3_lora.coco.report import DatasetIssueError, Issue, IssueCode, quote

ROBOFLOW_FILE = "_annotations.coco.json"
SPLIT_NAMES = {"train": ("train", "training"), "validation": ("valid", "val", "validation"), "test": ("test",)}
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
JUNK_FOLDERS = {"__macosx"}
FILE_NAME = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\\x00-\x1f]|\\.){1,4096}")')
PEEK_BYTES = 4 * 1024 * 1024
HINT = (
    "accepted layouts: train|valid|test/_annotations.coco.json beside the images (Roboflow COCO export); "
    "images/ with annotations/*.json (e.g. instances_train.json, instances_val.json); one folder with one JSON file"
)
# Files that only other tools' formats have, and what to do about them
FOREIGN = {
    "data.yaml": "this is a YOLO dataset: convert it with `sam3-lora datasets convert yolo data.yaml FOLDER`",
    "classes.txt": "this is a YOLO dataset: export it as COCO instead",
    "annotations.xml": "this is CVAT's own format: export it as COCO 1.0 instead",
}


@dataclass(frozen=True)
class Split:
    """One set of images: `file_name`s are relative to `images`."""

    images: Path
    annotations: Path


@dataclass(frozen=True)
class Layout:
    """The splits of a dataset."""

    train: Split
    validation: Split | None = None
    test: Split | None = None

    def splits(self) -> dict[str, Split]:
        """The splits that exist, by name, training first."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in named.items() if split is not None}


def find_layout(root: Path) -> Layout:
    """Recognise the layout of `root`, or of the single folder in it.

    Raises:
        DatasetIssueError: `issue.code` is split_missing or annotation_file_missing.
    """
    if not root.is_dir():
        raise _missing(IssueCode.ANNOTATION_FILE_MISSING, "the dataset is not a folder")
    tops = [root]
    folders = _folders(root)
    if len(folders) == 1:
        tops.append(folders[0])
    for top in tops:
        for recognise in (_split_folders, _annotations_folder, _single_file):
            layout = recognise(top)
            if layout is not None:
                return layout
    foreign = next((FOREIGN[name] for top in tops for name in FOREIGN if (top / name).is_file()), None)
    if foreign is not None:
        raise _missing(IssueCode.ANNOTATION_FILE_MISSING, "no COCO annotation file found", hint=foreign)
    named = [folder.name for folder in _folders(tops[-1]) if split_of(folder.name)]
    if named:
        raise _missing(IssueCode.ANNOTATION_FILE_MISSING, f"no annotation file in {', '.join(map(quote, named))}")
    raise _missing(IssueCode.ANNOTATION_FILE_MISSING, "no annotation file found")


def _split_folders(top: Path) -> Layout | None:
    """`train/`, `valid/` and `test/`, each with its own file beside the images."""
    found: dict[str, Path] = {}
    for folder in _folders(top):
        split = split_of(folder.name)
        if split is None:
            continue
        if split in found:
            message = f"folders {quote(found[split].name)} and {quote(folder.name)} both look like the {split} split"
            raise _missing(IssueCode.SPLIT_MISSING, message)
        found[split] = folder
    files = {split: _only_json(folder, top) for split, folder in found.items()}
    if not any(files.values()):
        return None
    without = [found[split].name for split, file in files.items() if file is None]
    if without:
        raise _missing(IssueCode.ANNOTATION_FILE_MISSING, f"no annotation file in {', '.join(map(quote, without))}")
    splits = {
        split: Split(_image_folder(file, [found[split], found[split] / "images"]), file)
        for split, file in files.items()
        if file is not None
    }
    return _layout(splits)


def _annotations_folder(top: Path) -> Layout | None:
    """`annotations/*.json` with images in `images/`, `images/<split>/` or `<split>/`."""
    files = _json_files(top / "annotations")
    if not files:
        return None
    instances = [file for file in files if file.stem.startswith("instances_")]
    found: dict[str, Path] = {}
    for file in instances or files:
        split = _split_of_file(file, alone=len(instances or files) == 1)
        if split is None or split in found:
            message = f"cannot tell which split {quote(file.name)} is"
            raise _missing(IssueCode.SPLIT_MISSING, message, file.relative_to(top).as_posix())
        found[split] = file
    return _layout(
        {split: Split(_image_folder(file, _candidates(top, split, file)), file) for split, file in found.items()}
    )


def _single_file(top: Path) -> Layout | None:
    """One JSON file beside the images or beside `images/`."""
    file = _only_json(top, top)
    return None if file is None else Layout(Split(_image_folder(file, [top, top / "images"]), file))


def _layout(splits: dict[str, Split]) -> Layout:
    if "train" not in splits:
        message = f"there is no training split, only {', '.join(splits)}"
        raise _missing(IssueCode.SPLIT_MISSING, message)
    return Layout(splits["train"], splits.get("validation"), splits.get("test"))


def split_of(name: str) -> str | None:
    """The split that a folder name means, also with a year (`train2017`)."""
    word = re.sub(r"\d{4}$", "", name.lower())
    return next((split for split, words in SPLIT_NAMES.items() if word in words), None)


def _split_of_file(file: Path, *, alone: bool) -> str | None:
    """The split that a file name means; a file on its own is the training split."""
    words = [part for part in re.split(r"[^A-Za-z0-9]+", file.stem) if part]
    splits = {split for split in map(split_of, words) if split}
    if len(splits) == 1:
        return splits.pop()
    return "train" if alone and not splits else None


def _candidates(top: Path, split: str, file: Path) -> list[Path]:
    names = [file.stem.removeprefix("instances_"), *SPLIT_NAMES[split]]
    nested = [parent / name for name in names for parent in (top / "images", top)]
    return [*nested, top / "images", top]


def _image_folder(annotations: Path, candidates: list[Path]) -> Path:
    """The first existing candidate that holds the first image of the file, else the first that exists."""
    existing = [folder for folder in candidates if folder.is_dir() and not folder.is_symlink()]
    name = _first_file_name(annotations)
    if name is not None:
        for folder in existing:
            if (folder / name).is_file():
                return folder
    with_images = [folder for folder in existing if _holds_images(folder)]
    return (with_images or existing)[0]


def _first_file_name(annotations: Path) -> PurePosixPath | None:
    """The first `file_name` near the start of the file, found without parsing it."""
    with annotations.open("rb") as file:
        match = FILE_NAME.search(file.read(PEEK_BYTES))
    if match is None:
        return None
    try:
        name = json.loads(match.group(1))
        name.encode()
    except ValueError:
        return None
    path = PurePosixPath(file_in_dataset(name))
    too_long = any(len(part.encode()) > 255 for part in path.parts)
    return None if path.is_absolute() or ".." in path.parts or "\0" in name or too_long else path


def _holds_images(folder: Path) -> bool:
    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.iterdir())


def _only_json(folder: Path, top: Path) -> Path | None:
    files = _json_files(folder)
    roboflow = [file for file in files if file.name == ROBOFLOW_FILE]
    if roboflow or len(files) == 1:
        return (roboflow or files)[0]
    if files:
        place = folder.relative_to(top).as_posix()
        names = ", ".join(quote(file.name) for file in files[:5])
        raise _missing(
            IssueCode.ANNOTATION_FILE_MISSING, f"several JSON files, cannot tell which to use: {names}", place
        )
    return None


def _json_files(folder: Path) -> list[Path]:
    if not folder.is_dir() or folder.is_symlink():
        return []
    paths = (path for path in folder.iterdir() if path.suffix.lower() == ".json" and not path.name.startswith("._"))
    return sorted(path for path in paths if path.is_file() and not path.is_symlink())


def _folders(folder: Path) -> list[Path]:
    paths = (
        path for path in folder.iterdir() if path.name.lower() not in JUNK_FOLDERS and not path.name.startswith(".")
    )
    return sorted(path for path in paths if path.is_dir() and not path.is_symlink())


def _missing(code: IssueCode, message: str, file: str | None = None, hint: str = HINT) -> DatasetIssueError:
    return DatasetIssueError(Issue(code=code, message=message, file=file, hint=hint))
