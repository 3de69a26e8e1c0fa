"""Tuned models: ask them, take them away in another form."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from anyio import sleep

from sam3_lora.client import schemas
from sam3_lora.client._async.lists import every
from sam3_lora.client._async.resources import AsyncResource
from sam3_lora.client._patience import in_thread_async, wanted_delay
from sam3_lora.client.errors import LocalFileError, WorkFailedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from sam3_lora.client._async.transport import AsyncTransport

NOT_YET = 202
POLL_S = 1.0


class AsyncModel(schemas.Model, AsyncResource):
    """A model of the service: the adapter of a job's best checkpoint."""

    async def predict(
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
        content = image if isinstance(image, bytes) else await in_thread_async(_read, Path(image))
        name = "image" if isinstance(image, bytes) else Path(image).name
        data: dict[str, Any] = {
            "prompt": [prompt] if isinstance(prompt, str) else list(prompt),
            "box": [",".join(f"{edge:g}" for edge in box) for box in boxes],
            "min_score": str(min_score),
            "untuned": str(untuned).lower(),
        }
        accept = {"Accept": "application/json" if overlay is None else "image/png"}
        response = await self._transport.request(
            "POST", f"/models/{self.id}/predict", files={"file": (name, content)}, data=data, headers=accept
        )
        place = response.headers.get("content-location") or response.headers["location"]
        while True:
            found = schemas.Prediction.model_validate(await self._transport.json("GET", place))
            if found.status == "failed":
                error = found.error
                raise WorkFailedError("the prediction failed" if error is None else f"{error.message} {error.hint}")
            if found.status == "succeeded":
                break
            await sleep(POLL_S)
        if overlay is not None:
            picture = await self._transport.request("GET", place, headers={"Accept": "image/png"})
            await in_thread_async(Path(overlay).write_bytes, picture.content)
        return found

    async def download(
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
        path = f"/models/{self.id}/export?format={form}"
        while True:
            async with self._transport.stream(path, {}) as response:
                if response.status_code != NOT_YET:
                    break
                delay = wanted_delay(response) or POLL_S
            await sleep(delay)
        return await self._transport.download(path, Path(target), on_progress=on_progress)

    async def delete(self) -> None:
        """Delete it; its job keeps the checkpoint."""
        await self._transport.request("DELETE", f"/models/{self.id}")


class AsyncModels:
    """`client.models`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def get(self, model_id: str) -> AsyncModel:
        """One model.

        Raises:
            NotFoundError: if there is none.
        """
        return AsyncModel.made(self._transport, await self._transport.json("GET", f"/models/{model_id}"))

    def list(
        self, *, base_model: str | None = None, job_id: str | None = None, limit: int | None = None
    ) -> AsyncIterator[AsyncModel]:
        """Models, the newest first."""
        return every(
            self._transport,
            "/models",
            lambda body: AsyncModel.made(self._transport, body),
            limit,
            base_model=base_model,
            job_id=job_id,
        )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise LocalFileError(f"{path} cannot be read: {error.strerror}") from error
