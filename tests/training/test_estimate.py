"""The estimate against the bytes that a real step with real values allocates, counted the same way."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sam3_lora.config import RunConfig
from sam3_lora.data.datapoint import Batch, collate
from sam3_lora.lora.inject import adapter_parameters
from sam3_lora.losses.sam3 import Counts, Sam3Loss
from sam3_lora.model.upstream import Recomputed
from sam3_lora.training import estimate
from sam3_lora.training.estimate import (
    BESIDE_TENSORS,
    MARGIN,
    BatchShape,
    LivingBytes,
    adapted_skeleton,
    assumed_batch,
    choose_recomputation,
    estimate_memory,
    largest_batch,
)
from sam3_lora.training.optim import build_optimizer
from sam3_lora.training.setup import prepare_data, prepare_model
from sam3_lora.training.step import Stepper


def measured(config: RunConfig) -> tuple[BatchShape, int]:
    """Peak bytes of the second step (the first makes the optimiser's state) on the first images."""
    data = prepare_data(config, 140)
    adapted = prepare_model(config, 140, data.concepts)
    adapters = adapter_parameters(adapted.model)
    loss = Sam3Loss(masks=config.training.enable_segmentation, mask_points=config.training.mask_points)
    loss.wrapper.o2m_matcher.threshold = -1.0  # an untrained model would match fewer queries than a trained one
    stepper = Stepper(
        adapted.model.train(),
        loss,
        build_optimizer(adapters, config.training),
        list(adapters.values()),
        amp_dtype=adapted.amp_dtype,
        max_grad_norm=0.1,
    )
    whole = Batch.of([data.train[0, i] for i in range(config.training.batch_size)], masks=loss.masks)
    batch = whole.datapoint
    counts = Counts.of(batch)
    stepper([whole])
    living = LivingBytes()
    stepper.optimizer.zero_grad(set_to_none=True)
    for tensor in [*adapted.model.parameters(), *adapted.model.buffers()]:
        living.watch(tensor)
    for state in stepper.optimizer.state.values():
        for tensor in state.values():
            living.watch(tensor)
    with living:
        stepper([whole])
    return BatchShape(len(batch.img_batch), counts.queries, positives_of([batch]), counts.objects), living.peak


def positives_of(batches: list[Any]) -> int:
    return sum(int((batch.find_targets[0].num_boxes > 0).sum()) for batch in batches)


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"training": {"activation_checkpointing": "on"}},
        {"training": {"use_amp": True, "batch_size": 4}},
        {"training": {"mask_points": None}},
        {"training": {"enable_segmentation": False}, "evaluation": {"metric": "bbox_mAP"}},
        {"lora": {"vision_layers": 1}},
        {"lora": {"apply_to_vision_encoder": False, "rank": 64}},
    ],
)
def test_within_a_tenth_of_a_real_step(make_config: Callable[..., RunConfig], sections: dict[str, Any]):
    config = make_config(**{"training": {"mask_points": 12544}, **sections})
    shape, peak = measured(config)
    assert estimate_memory(
        adapted_skeleton(config, device_type="cpu")[0], config, shape, device_type="cpu"
    ).peak == pytest.approx(peak, rel=0.1)


def test_the_largest_batch_is_that_of_the_data(make_config: Callable[..., RunConfig]):
    config = make_config()
    data = prepare_data(config, 140)
    data.train.absent_words = dict.fromkeys(range(len(data.train)), ("zebra", "whale"))
    samples = [data.train[0, i] for i in range(len(data.train))]
    queries = sorted((len(sample.queries) for sample in samples), reverse=True)
    objects = sorted((len(sample.boxes_N4) for sample in samples), reverse=True)
    positives = sorted((positives_of([collate([sample], masks=True)]) for sample in samples), reverse=True)
    assert largest_batch(config, data) == BatchShape(2, sum(queries[:2]), sum(positives[:2]), sum(objects[:2]))


def test_without_annotations_a_batch_is_assumed(make_config: Callable[..., RunConfig], tmp_path: Path):
    config = make_config(dataset={"train_ann_file": str(tmp_path / "none.json"), "negatives_per_image": 3})
    assert assumed_batch(config) == BatchShape(2, 2 * (2 + 3 + 1), 4, 8)


@pytest.mark.parametrize("fits", ["off", "encoders", "on"])
def test_as_few_activations_are_recomputed_as_the_memory_allows(
    make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, fits: Recomputed
):
    config = make_config()
    data = prepare_data(config, 140)
    adapted, batch = prepare_model(config, 140, data.concepts), largest_batch(config, data)
    assert choose_recomputation(config, adapted, data) is None  # small models keep everything
    monkeypatch.setattr(estimate, "is_large", lambda model: True)
    memory = estimate_memory(adapted_skeleton(config, fits, device_type="cpu")[0], config, batch, device_type="cpu")
    free = int((memory.adapters + memory.activations) * MARGIN) + BESIDE_TENSORS["cpu"]
    monkeypatch.setattr(estimate, "free_memory", lambda device: free)
    assert choose_recomputation(config, adapted, data) == fits
    wanted = make_config(training={"activation_checkpointing": "on"})
    assert choose_recomputation(wanted, adapted, data) is None
