"""Datasets as clients see them."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from sam3_lora.config import Section
from service.api.schemas.lists import Failure, Like, PageQuery, Read, Separated, Stored
from service.shared.db.models import Dataset
from service.shared.sources import shown
from service.shared.states import DatasetState


class DatasetQuery(PageQuery):
    status: Annotated[list[DatasetState], Separated] = Field([], max_length=10, examples=[["ready"]])
    """Only datasets in these states; repeat it, or separate them by commas."""


class UploadSource(Section):
    """A file that was uploaded in parts."""

    type: Literal["upload"]
    """Always `upload`."""
    upload_id: str = Field(min_length=1, max_length=64)
    """A completed upload."""


class UriSource(Section):
    """An archive on a host, or an archive or a folder in a bucket, that this server's operator allows; fetched once."""

    type: Literal["uri"]
    """Always `uri`."""
    uri: str = Field(
        min_length=1,
        max_length=2048,
        examples=["https://data.example.org/pallets.zip", "s3://datasets/pallets.zip", "s3://datasets/pallets/"],
    )
    """`https://...` of a file, without redirects; `s3://bucket/key` of a file, or of a folder with a slash at its
    end."""


class PathSource(Section):
    """A folder or an archive on the workers' disk, in a place that this server's operator allows; it is copied."""

    type: Literal["path"]
    """Always `path`."""
    path: str = Field(min_length=1, max_length=1024, examples=["/data/pallets"])
    """Absolute path on the workers."""


class DemoSource(Section):
    """Drawn scenes with two shapes that `sam3-tiny` does not know: to try the service without data of one's own."""

    type: Literal["demo"]
    """Always `demo`."""


class DatasetCreate(Section):
    """A dataset that comes from elsewhere."""

    name: str | None = Field(None, min_length=1, max_length=200, examples=["pallets"])
    """For people; null: the file's name."""
    source: Annotated[UploadSource | UriSource | PathSource | DemoSource, Field(discriminator="type")]
    """Where it comes from."""
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """Expected SHA-256 of the archive; a file that arrives changed is refused."""


class DatasetSource(Read):
    type: Literal["file", "upload", "uri", "path", "demo"]
    """`file`: the archive came with the request."""
    upload_id: str | None = None
    """The upload that it was made of."""
    uri: str | None = None
    """Without its query."""
    path: str | None = None
    """Where it lay on the workers."""


class DatasetUrls(Read):
    self: str
    """The dataset."""
    validation: str
    """The report of its check."""
    preview: str
    """Pictures of it."""


class DatasetSummary(Stored):
    """How much is in a dataset, and how much is wrong with it."""

    errors: int | None = None
    """Problems that keep it from being trained on, also those that are not listed."""
    warnings: int | None = None
    """Problems that do not, also those that are not listed."""
    images: int | None = None
    """Images of all splits."""
    instances: int | None = None
    """Annotated objects."""
    categories: int | None = None
    """Categories, by name."""
    images_without_annotations: int | None = None
    """Images that show none of them."""
    truncated: bool | None = None
    """Whether some problems are only counted."""


class DatasetIssue(Stored):
    """A problem of a dataset."""

    severity: str | None = None
    """error: it cannot be trained on; warning: it can."""
    code: str | None = None
    """Stable name of the kind of problem; new ones may be added."""
    file: str | None = None
    """Path in the dataset; null for a problem of the whole."""
    pointer: str | None = None
    """JSON Pointer into the file."""
    image: str | None = None
    """Path of the image."""
    annotation_id: int | str | None = None
    """Id of the annotation."""
    message: str | None = None
    """What is wrong."""
    hint: str | None = None
    """What to do about it; may be empty."""
    count: int | None = None
    """How many problems this entry stands for."""


class CategoryStats(Stored):
    """A category over all splits."""

    id: int | str | None = None
    """In the dataset."""
    name: str | None = None
    """In the dataset."""
    instances: int | None = None
    """Annotated objects."""
    images: int | None = None
    """Images that show any."""


class SideStats(Stored):
    """A side of all images, in pixels."""

    min: int | None = None
    """The least."""
    max: int | None = None
    """The largest."""
    median: int | float | None = None
    """The middle one."""


class DatasetStats(Stored):
    """Numbers of a dataset over all its splits."""

    per_category: list[CategoryStats] | None = None
    """The first categories."""
    image_sizes: dict[Literal["width", "height"], SideStats] | None = None
    """Empty where no image has a known size."""
    duplicates: int | None = None
    """Images whose content an earlier image of the same split has."""


class DatasetRead(Read):
    """An uploaded dataset. `ready` ones can be trained on; `invalid` ones have a report that says why not."""

    id: str
    """Opaque."""
    object: Literal["dataset"] = "dataset"
    name: str
    """For people."""
    project: str
    """Whose it is; quotas count it there."""
    status: DatasetState
    """processing, ready, invalid (its check found errors) or failed (it could not be fetched or checked)."""
    filename: str
    """What its archive was called."""
    source: DatasetSource
    """Where it came from."""
    bytes: int | None
    """Size of the archive; null until it has been fetched."""
    sha256: str | None
    """Of the archive. Datasets of the same bytes share one stored archive, and the report of a ready one."""
    summary: Annotated[dict[str, Any] | None, Like(DatasetSummary | None)]
    """Counts of the validation report, once there is one."""
    error: Annotated[dict[str, Any] | None, Like(Failure | None)]
    """Why the fetching or the check itself failed."""
    created_at: datetime
    """When it was created."""
    finished_at: datetime | None
    """When the check ended."""
    urls: DatasetUrls
    """Where to go on."""


class PreviewImage(Read):
    """An image of the dataset with its annotations drawn."""

    split: Literal["train", "validation", "test"]
    """The split that the image is of."""
    file_name: str
    """Path of the image in the dataset."""
    width: int
    """Of the image itself, in pixels; the picture is smaller."""
    height: int
    """Of the image itself, in pixels."""
    instances: int
    """Annotations of the image, drawn or not."""
    url: str
    """The picture (WebP)."""


class DatasetPreview(Read):
    object: Literal["list"] = "list"
    data: list[PreviewImage]
    """Pictures, spread over the images of each split."""


class DatasetValidation(Read):
    """The report of a dataset's check: every problem that was found, with where it is and what to do."""

    object: Literal["dataset.validation"] = "dataset.validation"
    dataset_id: str
    """The dataset."""
    status: DatasetState
    """State of the dataset."""
    summary: Annotated[dict[str, Any] | None, Like(DatasetSummary | None)] = None
    """How much there is and was found; null while there is no report."""
    issues: Annotated[list[dict[str, Any]], Like(list[DatasetIssue])]
    """Problems, errors first; of each kind as many as are worth reading, then how many more there are."""
    stats: Annotated[dict[str, Any] | None, Like(DatasetStats | None)] = None
    """Numbers of the dataset; null while there is no report."""


def dataset_read(dataset: Dataset) -> DatasetRead:
    url = f"/v1/datasets/{dataset.id}"
    return DatasetRead(
        id=dataset.id,
        name=dataset.name,
        project=dataset.project,
        status=dataset.state,
        filename=dataset.filename,
        source=DatasetSource(**shown(dataset.source)),
        bytes=dataset.size_bytes if dataset.sha256 else None,
        sha256=dataset.sha256 or None,
        summary=(dataset.report or {}).get("summary"),
        error=dataset.error,
        created_at=dataset.created_at,
        finished_at=dataset.finished_at,
        urls=DatasetUrls(self=url, validation=f"{url}/validation", preview=f"{url}/preview"),
    )


def dataset_validation(dataset: Dataset) -> DatasetValidation:
    report = dataset.report or {}
    return DatasetValidation(
        dataset_id=dataset.id,
        status=dataset.state,
        summary=report.get("summary"),
        issues=report.get("issues", []),
        stats=report.get("stats"),
    )


def dataset_preview(dataset: Dataset, *, split: str | None, limit: int) -> DatasetPreview:
    pictures = [
        PreviewImage(url=f"/v1/datasets/{dataset.id}/preview/{number}", **each)
        for number, each in enumerate(dataset.preview or [])
        if split in (None, each["split"])
    ]
    return DatasetPreview(data=pictures[:limit])
