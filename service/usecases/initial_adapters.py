"""Starting a job from the adapter of an earlier one: whether that fits is told before anything is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sam3_lora.config import JobConfig, LoraConfig, parse
from sam3_lora.errors import ConfigError
from service.shared.errors import InvalidRequestError, NotFoundError
from service.shared.states import TERMINAL

if TYPE_CHECKING:
    from service.shared.db.models import Checkpoint, Job
    from service.shared.unit_of_work import UnitOfWork


@dataclass(frozen=True)
class InitialAdapter:
    """Where to start: a checkpoint, or the best one of a job. Exactly one is given."""

    checkpoint_id: str | None = None
    job_id: str | None = None


def start_from(unit: UnitOfWork, wanted: InitialAdapter, base_model: str, config: JobConfig) -> tuple[JobConfig, str]:
    """The configuration to train with, and the checkpoint to start from.

    What is omitted of `config.lora` is the earlier job's: adapters have to be alike.

    Raises:
        InvalidRequestError: if there is no such checkpoint, its job may still replace it, or base or adapters differ.
    """
    job, checkpoint = _find(unit, wanted)
    if job.state not in TERMINAL:
        raise _refused(f"job {job.id} is {job.state} and may still replace its checkpoints", "job_not_ended")
    if job.base_model != base_model:
        message = f"the adapter was trained on {job.base_model}"
        raise InvalidRequestError(f"/base_model: {message}", errors=[fault("/base_model", "different_base", message)])
    earlier = job.resolved["config"]["lora"]
    given = config.lora.model_dump(mode="json", exclude_unset=True)
    try:
        lora = parse(LoraConfig, earlier | given)
    except ConfigError as error:
        raise _refused(error.message, "different_adapters") from None
    if differing := lora.incompatible_with(parse(LoraConfig, earlier)):
        faults = [
            fault(f"/config/lora/{name}", "different_adapters", f"is {earlier[name]!r} in the earlier adapter")
            for name in differing
        ]
        detail = "; ".join(f"{each['pointer']}: {each['message']}" for each in faults)
        raise InvalidRequestError(f"init_from: the adapters differ: {detail}", errors=faults)
    return config.model_copy(update={"lora": lora}), checkpoint.id


def _find(unit: UnitOfWork, wanted: InitialAdapter) -> tuple[Job, Checkpoint]:
    """The checkpoint and its job, which is locked so that it is not deleted meanwhile."""
    job_id = wanted.job_id
    if wanted.checkpoint_id is not None:
        named = unit.checkpoints.find(wanted.checkpoint_id)
        if named is None:
            raise _refused(f"there is no checkpoint {wanted.checkpoint_id!r}", "checkpoint_not_found")
        job_id = named.job_id
    try:
        job = unit.jobs.get(str(job_id), lock=True, shared=True)
    except NotFoundError:
        raise _refused(f"there is no job {job_id!r}", "job_not_found") from None
    checkpoints = unit.checkpoints.list(job.id)
    best_id = wanted.checkpoint_id or (job.best or {}).get("checkpoint_id")
    chosen = next((each for each in checkpoints if each.id == best_id), None)
    if chosen is None and wanted.checkpoint_id is None and checkpoints:
        chosen = checkpoints[0]
    if chosen is None:
        raise _refused(f"job {job.id} has no checkpoint", "checkpoint_not_found")
    return job, chosen


def _refused(message: str, code: str) -> InvalidRequestError:
    return InvalidRequestError(f"/init_from: {message}", errors=[fault("/init_from", code, message)])


def fault(pointer: str, code: str, message: str) -> dict[str, str]:
    """An entry of a problem's `errors`."""
    return {"pointer": pointer, "code": code, "message": message}
