import pytest
import torch

from sam3_lora.config import TrainingConfig
from sam3_lora.training.optim import build_optimizer, learning_rate, set_learning_rate


def rates(steps: int = 200, **values: object) -> list[float]:
    config = TrainingConfig(learning_rate=1.0, **values)
    return [learning_rate(step, steps, config) for step in range(steps)]


@pytest.mark.parametrize("scheduler", ["cosine", "linear", "constant", "inverse_sqrt"])
def test_warm_up_is_linear_to_the_peak(scheduler: str):
    found = rates(warmup_steps=10, lr_scheduler=scheduler)
    assert found[:10] == pytest.approx([(n + 1) / 10 for n in range(10)])
    assert max(found) == pytest.approx(1.0)


def test_cosine_ends_near_zero_half_way_at_half():
    found = rates(warmup_steps=0)
    assert found[0] == 1.0
    assert found[100] == pytest.approx(0.5)
    assert found[-1] < 1e-3
    assert found == sorted(found, reverse=True)


def test_linear_falls_evenly_to_zero():
    found = rates(warmup_steps=0, lr_scheduler="linear")
    assert (found[0], found[100]) == (1.0, pytest.approx(0.5))
    assert found[-1] == pytest.approx(1 / 200)


def test_lora_plus_moves_b_matrices_faster():
    adapters = {name: torch.nn.Parameter(torch.zeros(2, 2)) for name in ("x.lora.linear.a", "x.lora.linear.b")}
    optimizer = build_optimizer(adapters, TrainingConfig(), loraplus_lr_ratio=16.0)
    set_learning_rate(optimizer, 1e-3)
    for parameter in adapters.values():
        parameter.grad = torch.ones(2, 2)
    optimizer.step()
    a, b = (float(parameter.detach().abs().max()) for parameter in adapters.values())
    assert (a, b) == (pytest.approx(1e-3), pytest.approx(16e-3))


def test_constant_stays():
    assert set(rates(warmup_steps=0, lr_scheduler="constant")) == {1.0}


def test_inverse_square_root():
    found = rates(warmup_steps=0, lr_scheduler="inverse_sqrt")
    assert found[60] == pytest.approx(0.5)  # sqrt(20 / 80)


def test_warm_up_takes_at_most_a_tenth_of_a_short_run():
    found = rates(steps=30, warmup_steps=1000)
    assert found[3] == pytest.approx(1.0)
