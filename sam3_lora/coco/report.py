"""The dataset report: what is wrong with a dataset, where, and what to do about it.

Codes and fields are a public contract; messages may change. Who finds the issues is left to other modules.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from sam3_lora.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Callable

Id = int | str
ISSUES_PER_CODE = 50
MAX_TEXT = 500


class Severity(StrEnum):
    ERROR = "error"
    WARNING = "warning"


class IssueCode(StrEnum):
    """Stable names of dataset faults. Clients must accept values added later."""

    ARCHIVE_UNSAFE_PATH = "archive_unsafe_path"
    ARCHIVE_BOMB = "archive_bomb"
    ARCHIVE_INVALID = "archive_invalid"
    ANNOTATION_FILE_MISSING = "annotation_file_missing"
    SPLIT_MISSING = "split_missing"
    JSON_INVALID = "json_invalid"
    IMAGE_MISSING = "image_missing"
    IMAGE_UNREADABLE = "image_unreadable"
    IMAGE_TOO_LARGE = "image_too_large"
    IMAGE_SIZE_MISMATCH = "image_size_mismatch"
    ID_MISSING = "id_missing"
    ID_DUPLICATE = "id_duplicate"
    CATEGORY_UNKNOWN = "category_unknown"
    CATEGORY_DUPLICATE = "category_duplicate"
    POLYGON_TOO_FEW_POINTS = "polygon_too_few_points"
    RLE_SIZE_MISMATCH = "rle_size_mismatch"
    MASK_OUT_OF_BOUNDS = "mask_out_of_bounds"
    MASK_EMPTY = "mask_empty"
    BBOX_INVALID = "bbox_invalid"
    CROWD_IGNORED = "crowd_ignored"
    CROWD_AS_OBJECT = "crowd_as_object"
    DUPLICATE_IMAGE = "duplicate_image"
    TRAIN_VAL_OVERLAP = "train_val_overlap"
    TOO_FEW_IMAGES = "too_few_images"
    CLASS_IMBALANCE = "class_imbalance"
    VALIDATOR_CRASHED = "validator_crashed"


@dataclass(frozen=True, kw_only=True)
class Issue:
    """One fault. `file` is relative to the dataset's root, `pointer` is RFC 6901 within that file."""

    code: IssueCode
    message: str
    severity: Severity = Severity.ERROR
    file: str | None = None
    pointer: str | None = None
    image: str | None = None
    annotation_id: Id | None = None
    hint: str = ""
    count: int = 1

    def to_dict(self) -> dict[str, Any]:
        """JSON values only: every text is valid Unicode of bounded length."""
        return {
            "severity": self.severity.value,
            "code": self.code.value,
            "file": _printable(self.file),
            "pointer": _printable(self.pointer),
            "image": _printable(self.image),
            "annotation_id": _printable(self.annotation_id),
            "message": _printable(self.message),
            "hint": _printable(self.hint),
            "count": self.count,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Issue:
        """Inverse of `to_dict`."""
        known = {name: values[name] for name in (f.name for f in fields(cls))}
        return cls(**known | {"code": IssueCode(values["code"]), "severity": Severity(values["severity"])})


class DatasetIssueError(DatasetError):
    """One fault that ends the reading of a dataset; `issue` is its entry in a report."""

    def __init__(self, issue: Issue) -> None:
        place = quote(f"{issue.file or ''}{issue.pointer or ''}")
        named = place == quote("") or place in issue.message
        super().__init__(issue.message if named else f"{place}: {issue.message}", hint=issue.hint)
        self.issue = issue


@dataclass(frozen=True)
class Stats:
    """Numbers of a dataset over all its splits."""

    per_category: list[dict[str, Any]] = field(default_factory=list)  # id, name, instances, images
    image_sizes: dict[str, Any] = field(default_factory=dict)  # width, height: {min, max, median} in pixels
    duplicates: int = 0  # images whose content an earlier image of the same split has

    def to_dict(self) -> dict[str, Any]:
        return {"per_category": self.per_category, "image_sizes": self.image_sizes, "duplicates": self.duplicates}


@dataclass(frozen=True, kw_only=True)
class DatasetReport:
    """The outcome of a validation; `errors` and `warnings` count every fault, also those not listed in `issues`."""

    issues: tuple[Issue, ...] = ()
    errors: int = 0
    warnings: int = 0
    images: int = 0
    instances: int = 0
    categories: int = 0
    images_without_annotations: int = 0
    truncated: bool = False
    stats: Stats = Stats()

    @property
    def status(self) -> str:
        """`valid`, or `invalid` where there is any error."""
        return "invalid" if self.errors else "valid"

    @classmethod
    def failed(cls, issue: Issue) -> DatasetReport:
        """The report of a dataset that one fault kept from being read at all."""
        return cls(issues=(issue,), errors=1)

    def to_dict(self) -> dict[str, Any]:
        """The report as the API shows it; JSON values only."""
        summary = {name: getattr(self, name) for name in _SUMMARY}
        issues = [issue.to_dict() for issue in self.issues]
        return {"status": self.status, "summary": summary, "issues": issues, "stats": self.stats.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DatasetReport:
        """Inverse of `to_dict`."""
        summary = {name: values["summary"][name] for name in _SUMMARY}
        issues = tuple(Issue.from_dict(item) for item in values["issues"])
        return cls(issues=issues, stats=Stats(**values["stats"]), **summary)


_SUMMARY = ("errors", "warnings", "images", "instances", "categories", "images_without_annotations", "truncated")


class IssueLog:
    """Collects issues in bounded memory: the first `ISSUES_PER_CODE` of each code and severity, then a count."""

    def __init__(self) -> None:
        self._kept: list[Issue] = []
        self._seen: Counter[tuple[IssueCode, Severity]] = Counter()

    def add(self, issue: Issue) -> None:
        key = (issue.code, issue.severity)
        self._seen[key] += issue.count
        if self._seen[key] <= ISSUES_PER_CODE:
            self._kept.append(issue)

    def count(self, severity: Severity) -> int:
        """All issues of a severity, kept or not."""
        return sum(count for (_, each), count in self._seen.items() if each is severity)

    def report(
        self,
        stats: Stats | None = None,
        *,
        images: int = 0,
        instances: int = 0,
        categories: int = 0,
        images_without_annotations: int = 0,
    ) -> DatasetReport:
        """The report of all issues so far: errors first, otherwise in the order found."""
        unlisted = {key: count - ISSUES_PER_CODE for key, count in self._seen.items() if count > ISSUES_PER_CODE}
        rest = [
            Issue(code=code, severity=severity, message=f"and {count:,} more of this kind", count=count)
            for (code, severity), count in unlisted.items()
        ]
        return DatasetReport(
            issues=tuple(sorted([*self._kept, *rest], key=lambda issue: issue.severity is Severity.WARNING)),
            errors=self.count(Severity.ERROR),
            warnings=self.count(Severity.WARNING),
            truncated=bool(rest),
            stats=stats or Stats(),
            images=images,
            instances=instances,
            categories=categories,
            images_without_annotations=images_without_annotations,
        )


class Place(NamedTuple):
    """Where something is being read, and who is told of its faults. Cheap: one is made for every record."""

    report: Callable[[Issue], None]
    file: str | None = None
    keys: tuple[str | int, ...] = ()
    image: str | None = None
    annotation_id: Id | None = None

    def at(self, *keys: str | int) -> Place:
        """The place of a value inside this one."""
        return Place(self.report, self.file, self.keys + keys, self.image, self.annotation_id)

    def about(self, image: str | None, annotation_id: Id | None = None) -> Place:
        """The same place, with the names that a reader knows it by."""
        return Place(self.report, self.file, self.keys, image, annotation_id)

    def error(self, code: IssueCode, message: str, hint: str) -> None:
        self.report(self.issue(code, message, hint, Severity.ERROR))

    def warn(self, code: IssueCode, message: str, hint: str) -> None:
        self.report(self.issue(code, message, hint, Severity.WARNING))

    def issue(self, code: IssueCode, message: str, hint: str, severity: Severity) -> Issue:
        parts = (str(key).replace("~", "~0").replace("/", "~1") for key in self.keys)
        return Issue(
            code=code,
            message=message,
            hint=hint,
            severity=severity,
            file=self.file,
            pointer="".join(f"/{part}" for part in parts) or None,
            image=self.image,
            annotation_id=self.annotation_id,
        )


def quote(value: object) -> str:
    """A user's value for a message: its repr, shortened, without anything unprintable."""
    if isinstance(value, int) and abs(value) >= 10**20:
        return "an integer of more than 20 digits"
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else f"a list of {len(value)}"
    text = repr(value[:200]) if isinstance(value, str) else repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _printable(value: Any) -> Any:
    """Lone surrogates would break the JSON that carries the report, and a name may be of any length."""
    if not isinstance(value, str):
        return value
    return value.encode("utf-8", "backslashreplace").decode()[:MAX_TEXT]
