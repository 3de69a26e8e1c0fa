"""Sample images as clients see them."""

from datetime import datetime
from typing import Any, Literal

from service.api.schemas.lists import Read
from service.usecases.samples import Samples


class Instance(Read):
    """An object that is shown in a panel."""

    category: str
    """As the dataset has it."""
    score: float | None
    """Null for an annotated object."""


class PanelRead(Read):
    """A JPEG picture: the bare image, or it with the annotated or found objects drawn."""

    url: str
    """Where the picture is downloaded."""
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    sha256: str
    """Hash of the picture, which is also its entity tag."""
    instances: list[Instance]
    """What is drawn; the bare image has none."""


class MistakesRead(Read):
    missed: int
    """Annotated objects without a detection of score >= 0.5 that overlaps them by half."""
    false_alarms: int
    """Detections of score >= 0.5 without such an object."""


class SampleRead(Read):
    position: int
    """0 is the image with most mistakes of the tuned model; of an epoch's samples, of the base."""
    file_name: str
    """As the dataset has it."""
    objects: int
    """Annotated objects."""
    mistakes: dict[Literal["base", "tuned"], MistakesRead]
    """By model."""
    panels: dict[Literal["image", "truth", "base", "tuned"], PanelRead]
    """Empty if the image cannot be read; without `base` if the base model was not evaluated."""


class SampleList(Read):
    object: Literal["list"] = "list"
    """Always `list`."""
    data: list[SampleRead]
    """Worst first; of the end of the job, empty until it has succeeded."""
    created_at: datetime | None
    """Null while there are none."""
    epoch: int | None
    """What was asked for; null for the end of the job."""
    epochs: list[int]
    """Of which there are samples: of every validation, in a long training of some twenty."""


def sample_list(job_id: str, found: Samples, epochs: list[int]) -> SampleList:
    created_at = next((file.created_at for file in found.files.values()), None)
    return SampleList(data=sample_reads(job_id, found), created_at=created_at, epoch=found.epoch, epochs=epochs)


def sample_reads(job_id: str, found: Samples) -> list[SampleRead]:
    return [_sample(job_id, position, row, found) for position, row in enumerate(found.rows)]


def _sample(job_id: str, position: int, row: dict[str, Any], found: Samples) -> SampleRead:
    query = "" if found.epoch is None else f"?epoch={found.epoch}"
    return SampleRead(
        position=position,
        file_name=row["file_name"],
        objects=row["objects"],
        mistakes={
            model: MistakesRead(missed=count, false_alarms=row["false_alarms"][model])
            for model, count in row["missed"].items()
        },
        panels={
            name: PanelRead(
                url=f"/v1/jobs/{job_id}/samples/{position}/{name}{query}",
                width=panel["width"],
                height=panel["height"],
                sha256=found.files[panel["file"]].sha256,
                instances=[Instance(**instance) for instance in row["instances"].get(name, [])],
            )
            for name, panel in row["panels"].items()
        },
    )
