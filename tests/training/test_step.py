from collections.abc import Callable

import pytest
import torch

from sam3_lora.config import LoraConfig
from sam3_lora.data.datapoint import Batch
from sam3_lora.errors import OutOfMemoryError
from sam3_lora.lora.inject import adapter_parameters, inject
from sam3_lora.losses.sam3 import Sam3Loss
from sam3_lora.training.step import Stepper, StepResult
from tests.models import micro_model, mixed_batch


def step(
    fits: int, *, fails_in: str = "forward", error: Callable[[], Exception] = torch.OutOfMemoryError
) -> tuple[StepResult, dict[str, torch.Tensor], Stepper]:
    """One step over two micro-batches on a device where passes of more than `fits` queries run out of memory."""
    model = micro_model()
    inject(model, LoraConfig())
    adapters = adapter_parameters(model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapters.values():
            parameter.normal_(std=0.05)  # B at zero would leave A without gradient
    optimizer = torch.optim.SGD(adapters.values(), lr=1.0)
    loss = Sam3Loss(masks=True, mask_points=None)
    stepper = Stepper(model, loss, optimizer, list(adapters.values()), amp_dtype=None, max_grad_norm=0.0)
    forward = model.forward

    class Exhausted(torch.autograd.Function):
        @staticmethod
        def forward(_: object, value: torch.Tensor) -> torch.Tensor:
            return value.clone()

        @staticmethod
        def backward(*_: object) -> None:
            raise error()

    def limited(batch: object, features: object) -> object:
        outputs = forward(batch, features)
        if len(batch.find_inputs[0].img_ids) > fits:
            if fails_in == "forward":
                raise error()
            last = outputs[-1]
            if "semantic_seg" in last:
                last["semantic_seg"] = Exhausted.apply(last["semantic_seg"])  # after the gradients of the boxes, say
            else:
                last["pred_logits"] = Exhausted.apply(last["pred_logits"])
        return outputs

    model.forward = limited
    batches = Batch(mixed_batch(images=2), (None, None)), Batch(mixed_batch(images=1, seed=5), (None,))
    result = stepper(batches)
    return result, {name: p.grad for name, p in adapters.items()}, stepper


@pytest.mark.parametrize("fails_in", ["forward", "backward"])
def test_out_of_memory_falls_back_to_smaller_passes_with_the_same_gradient(fails_in: str):
    roomy, expected, _ = step(fits=100)
    tight, found, stepper = step(fits=2, fails_in=fails_in)
    assert stepper.most_queries == 2
    assert tight.applied
    for name in ("loss", "grad_norm", "loss_ce", "loss_bbox", "loss_mask", "presence_loss", "presence_dec_acc"):
        assert tight.values[name] == pytest.approx(roomy.values[name], rel=1e-4), name
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4 * float(value.abs().max()), msg=name)


def test_memory_of_the_cpu_runs_out_too():
    message = "[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    _, _, stepper = step(fits=2, error=lambda: RuntimeError(message))
    assert stepper.most_queries == 2


def test_a_single_query_that_does_not_fit_is_a_named_error():
    with pytest.raises(OutOfMemoryError) as caught:
        step(fits=0)
    assert "dataset.resolution" in caught.value.hint


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    with pytest.raises(RuntimeError, match="shapes"):
        step(fits=2, error=lambda: RuntimeError("shapes do not match"))
