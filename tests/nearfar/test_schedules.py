"""The learning rate after each update, against each schedule's formula."""

import math
from collections.abc import Callable

import pytest
import torch

from nearfar.schedules import build_schedule
from nearfar.training_options import TrainingOptions

PEAK, TOTAL, PER_EPOCH = 0.5, 40, 6


def rates(**options: object) -> list[float]:
    """Return the rate of updates 0 to TOTAL - 1."""
    given = TrainingOptions(learning_rate=PEAK, **options)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    schedule = build_schedule(optimizer, given, num_updates=TOTAL, updates_per_epoch=PER_EPOCH)
    found = []
    for _ in range(TOTAL):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


AFTER_WARMUP: dict[str, Callable[[int, int], float]] = {  # update, warm-up -> share of the peak
    "constant": lambda u, w: 1.0,
    "cosine": lambda u, w: 0.5 * (1 + math.cos(math.pi * (u - w) / (TOTAL - w))),
    "linear": lambda u, w: (TOTAL - u) / (TOTAL - w),
    "inverse_sqrt": lambda u, w: math.sqrt(w / u) if w else math.sqrt(10_000 / (u + 10_000)),
    "step": lambda u, w: 0.3 ** (u // (2 * PER_EPOCH)),
}


@pytest.mark.parametrize("warmup", [0, 9])
@pytest.mark.parametrize("name", AFTER_WARMUP)
def test_each_schedule_rises_to_its_peak_and_goes_on_by_its_formula(name: str, warmup: int) -> None:
    found = rates(lr_scheduler_type=name, warmup_steps=warmup, lr_step_epochs=2, lr_step_factor=0.3)
    expected = [
        PEAK * (u / warmup if u < warmup else AFTER_WARMUP[name](u, warmup)) for u in range(TOTAL)
    ]
    assert found == pytest.approx(expected)


def test_a_warm_up_may_be_longer_than_the_time_to_the_first_step() -> None:
    found = rates(lr_scheduler_type="step", warmup_steps=20, lr_step_epochs=1, lr_step_factor=0.5)
    assert found[12] == pytest.approx(PEAK * 12 / 20 * 0.25)
