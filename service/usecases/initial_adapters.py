"""Starting a job from the adapter of an earlier one: whether that fits is told before anything is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sam3_lora.config import JobConfig, LoraConfig, parse
from sam3_lora.errors import ConfigError
from service.shared.errors import InvalidRequestError, NotFoundError, fault, invalid
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
        raise invalid(
            "/init_from", "job_not_ended", f"job {job.id} is {job.state} and may still replace its checkpoints"
        )
    if job.base_model != base_model:
        message = f"the adapter was trained on {job.base_model}"
        raise invalid("/base_model", "different_base", message)
    earlier = job.resolved["config"]["lora"]
    given = config.lora.model_dump(mode="json", exclude_unset=True)
    try:
        lora = parse(LoraConfig, earlier | given)
    except ConfigError as error:
        raise invalid("/init_from", "different_adapters", error.message) from None
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
            raise invalid("/init_from", "checkpoint_not_found", f"there is no checkpoint {wanted.checkpoint_id!r}")
        job_id = named.job_id
    try:
        job = unit.jobs.get(str(job_id), lock=True, shared=True)
    except NotFoundError:
        raise invalid("/init_from", "job_not_found", f"there is no job {job_id!r}") from None
    checkpoints = unit.checkpoints.list(job.id)
    best_id = wanted.checkpoint_id or (job.best or {}).get("checkpoint_id")
    chosen = next((each for each in checkpoints if each.id == best_id), None)
    if chosen is None and wanted.checkpoint_id is None and checkpoints:
        chosen = checkpoints[0]
    if chosen is None:
        raise invalid("/init_from", "checkpoint_not_found", f"job {job.id} has no checkpoint")
    return job, chosen
