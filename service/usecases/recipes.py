"""What can be trained here and how: the configuration's schema, its defaults, and a job to begin with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from sam3_lora.config import JobConfig, ModelConfig
from service.shared.errors import NotFoundError

if TYPE_CHECKING:
    from service.shared.settings import Settings

DESCRIPTIONS: dict[str, str] = {
    "sam3": "The official SAM3 image model: 840 M parameters, 1008 pixels.",
    "sam3-tiny": "A base of a few megabytes, pretrained on drawn shapes: for trying the system. It is not SAM3.",
}
# What differs from the defaults. sam3-tiny learns best at this rate, in float32 on any CPU (benchmarks/README.md).
SUGGESTED: dict[str, dict[str, Any]] = {
    "sam3": {
        "lora": {"rank": 16, "alpha": 32.0},
        "training": {"max_epochs": 20, "batch_size": 2, "learning_rate": 1e-4},
    },
    "sam3-tiny": {
        "lora": {"rank": 16, "alpha": 32.0},
        "training": {"max_epochs": 5, "batch_size": 4, "learning_rate": 2e-3, "use_amp": False},
    },
}


@dataclass(frozen=True)
class Recipe:
    """How a base model is tuned."""

    base_model: str
    description: str
    available: bool
    config_schema: dict[str, Any]
    defaults: dict[str, Any]
    limits: dict[str, int]
    template: dict[str, Any]


def recipes(settings: Settings) -> list[Recipe]:
    """Those of all base models, also of one that this installation has no weights for."""
    return [find_recipe(settings, name) for name in known_models()]


def find_recipe(settings: Settings, base_model: str) -> Recipe:
    """The recipe of one base model.

    Raises:
        NotFoundError: if there is no such model.
    """
    if base_model not in known_models():
        raise NotFoundError(f"There is no base model {base_model!r}: known are {', '.join(known_models())}.")
    return Recipe(
        base_model=base_model,
        description=DESCRIPTIONS[base_model],
        available=base_model in settings.base_models,
        config_schema=JobConfig.model_json_schema(),
        defaults=JobConfig().model_dump(mode="json"),
        limits={"max_upload_bytes": settings.max_upload_bytes, "max_json_bytes": settings.max_json_bytes},
        template={
            "name": f"first-{base_model}",
            "base_model": base_model,
            "dataset_id": "ds_...",
            "config": SUGGESTED[base_model],
            "resources": {"gpus": 1},
            "limits": {"max_runtime_s": 86400, "max_attempts": 3},
        },
    )


def known_models() -> tuple[str, ...]:
    """Names of the base models that the training library knows."""
    return get_args(ModelConfig.model_fields["base"].annotation)
