# Made from `_async` by `make generate`: change it there.
"""Large files on their way to the service, in parts: what has arrived is not sent again."""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING, Any

from sam3_lora.client._memory import UploadMemory
from sam3_lora.client._patience import in_thread
from sam3_lora.client.errors import LocalFileError, NotFoundError
from sam3_lora.client.schemas import Upload

if TYPE_CHECKING:
    from collections.abc import Callable

    from sam3_lora.client._archives import Source
    from sam3_lora.client._sync.transport import Transport

PART_BYTES = 8 * 2**20
MAX_PARTS = 9000


def send(transport: Transport, source: Source, on_progress: Callable[[int, int], object]) -> str:
    """Id of the completed upload of these bytes: one that was begun on this machine is gone on with.

    Raises:
        LocalFileError: if the content changed while it was read.
    """
    fingerprint = in_thread(source.fingerprint)
    memory = UploadMemory(transport.base_url, fingerprint)
    upload = _begin(transport, source, memory)
    if upload.status == "pending":
        _send_parts(transport, source, upload, on_progress)
        if in_thread(source.fingerprint) != fingerprint:
            transport.request("DELETE", f"/uploads/{upload.id}")
            memory.forget()
            raise LocalFileError(f"{source.filename} changed while it was sent: upload it again")
        transport.request("POST", upload.urls.complete)
    return upload.id


def forget(transport: Transport, source: Source) -> None:
    """Of an upload that has become a dataset: another upload of the same makes another dataset."""
    UploadMemory(transport.base_url, source.fingerprint()).forget()


def _begin(transport: Transport, source: Source, memory: UploadMemory) -> Upload:
    known = memory.recall()
    if known is not None:
        try:
            upload = Upload.model_validate(transport.json("GET", f"/uploads/{known}"))
        except NotFoundError:
            pass
        else:
            if upload.status != "expired":
                return upload
    body: dict[str, Any] = {
        "filename": source.filename,
        "bytes": source.size_bytes,
        "part_bytes": max(PART_BYTES, -(-source.size_bytes // MAX_PARTS)),
    }
    upload = Upload.model_validate(transport.json("POST", "/uploads", json=body))
    memory.keep(upload.id)
    return upload


def _send_parts(
    transport: Transport, source: Source, upload: Upload, on_progress: Callable[[int, int], object]
) -> None:
    there = {part.number for part in upload.parts}
    done = sum(part.bytes for part in upload.parts)
    on_progress(done, source.size_bytes)
    for number in range(1, upload.part_count + 1):
        if number in there:
            continue
        start = (number - 1) * upload.part_bytes
        end = min(start + upload.part_bytes, source.size_bytes)
        content = in_thread(source.read, start, end)
        digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
        headers = {"Content-Digest": f"sha-256=:{digest}:", "Content-Type": "application/octet-stream"}
        path = upload.urls.part.replace("{number}", str(number))
        transport.request("PUT", path, content=content, headers=headers)
        done += len(content)
        on_progress(done, source.size_bytes)
