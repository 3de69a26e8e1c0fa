# Made from `_async` by `make generate`: change it there.
"""Tuned models: ask them, take them away in another form."""

from __future__ import annotations

from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Any, Literal

from sam3_lora.client import schemas
from sam3_lora.client._patience import in_thread
from sam3_lora.client._sync.resources import Collection, Resource
from sam3_lora.client.errors import LocalFileError, WorkFailedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


POLL_S = 1.0
PNG = "image/png"
ENDED = ("succeeded", "failed")


class Model(schemas.Model, Resource):
    """A model of the service: the adapter of a job's best checkpoint."""

    COLLECTION = "/models"

    def predict(
        self,
        image: str | Path | bytes,
        prompt: str | Sequence[str] = (),
        *,
        boxes: Sequence[Sequence[float]] = (),
        min_score: float = 0.5,
        untuned: bool = False,
        overlay: str | Path | None = None,
    ) -> schemas.Prediction:
        """Find things in an image.

        Args:
            image: a file, or its content: JPEG, PNG, WebP, BMP or TIFF.
            prompt: what to find, or several such things; without it and `boxes`, all that the model was tuned on.
            boxes: examples of it in this image, each `x1, y1, x2, y2` in pixels.
            min_score: detections below are left out.
            untuned: ask the base model instead, to compare the two.
            overlay: file to write a PNG picture of the answer to.

        Returns:
            For each prompt its detections: score, box, and mask as COCO RLE.

        Raises:
            WorkFailedError: if it could not be answered.
        """
        content = image if isinstance(image, bytes) else in_thread(_read, Path(image))
        name = "image" if isinstance(image, bytes) else Path(image).name
        data: dict[str, Any] = {
            "prompt": [prompt] if isinstance(prompt, str) else list(prompt),
            "box": [",".join(f"{edge:g}" for edge in box) for box in boxes],
            "min_score": str(min_score),
            "untuned": str(untuned).lower(),
        }
        accept = {"Accept": "application/json" if overlay is None else PNG}
        response = self._transport.request(
            "POST", f"{self._path}/predict", files={"file": (name, content)}, data=data, headers=accept
        )
        place = response.headers.get("content-location") or response.headers["location"]
        is_picture = response.headers["content-type"] == PNG
        body = self._transport.json("GET", place) if is_picture else response.json()
        while (found := schemas.Prediction.model_validate(body)).status not in ENDED:
            sleep(POLL_S)
            body = self._transport.json("GET", place)
        if found.status == "failed":
            error = found.error
            raise WorkFailedError("the prediction failed" if error is None else f"{error.message} {error.hint}")
        if overlay is not None:
            if not is_picture:
                response = self._transport.request("GET", place, headers={"Accept": PNG})
            in_thread(Path(overlay).write_bytes, response.content)
        return found

    def download(
        self,
        target: str | Path,
        *,
        form: Literal["native", "peft", "merged"] = "native",
        on_progress: Callable[[int, int | None], object] = lambda done, total: None,
    ) -> Path:
        """Fetch it in one of its forms; one that is not there yet is made meanwhile.

        Args:
            target: file to write.
            form: native: a zip with the adapter's own files. peft: a zip that peft loads onto the `Sam3Model` of
                transformers. merged: one safetensors file of the base with the adapter folded in.
        """
        path = f"{self._path}/export?format={form}"
        return self._transport.download(path, Path(target), on_progress=on_progress)

    def delete(self) -> None:
        """Delete it; its job keeps the checkpoint."""
        self._transport.request("DELETE", self._path)


class Models(Collection[Model]):
    """`client.models`."""

    KIND = Model

    def list(
        self, *, base_model: str | None = None, job_id: str | None = None, limit: int | None = None
    ) -> Iterator[Model]:
        """Models, the newest first."""
        return self._every(limit, base_model=base_model, job_id=job_id)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise LocalFileError(f"{path} cannot be read: {error.strerror}") from error
