"""Random numbers per clip, far mixed into near, and pieces of clips."""

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nearfar.augmentation import clip_uniform, crop, mix_far


@given(order=st.permutations(range(6)), batch_size=st.integers(1, 6))
def test_a_clip_draws_the_same_number_in_any_batch_and_order(
    order: list[int], batch_size: int
) -> None:
    options = {"low": -1.0, "high": 2.0, "seed": 3, "epoch": 5}
    alone = [clip_uniform([index], **options).item() for index in range(6)]
    for start in range(0, 6, batch_size):
        batch = torch.tensor(order[start : start + batch_size])
        drawn = clip_uniform(batch, **options)
        assert drawn.tolist() == [alone[index] for index in batch.tolist()]


def test_numbers_spread_evenly_over_the_range() -> None:
    drawn = clip_uniform(range(4000), low=0.25, high=0.75, seed=0, epoch=0)
    assert drawn.dtype == torch.float32
    assert drawn.min() >= 0.25
    assert drawn.max() < 0.75
    counts = torch.histc(drawn, bins=10, min=0.25, max=0.75)
    assert (counts - 400).abs().max() < 5 * 19  # sigma = sqrt(4000 * 0.1 * 0.9) = 19


def test_every_seed_epoch_stream_and_clip_draws_a_number_of_its_own() -> None:
    drawn = [
        clip_uniform(range(20), low=0.0, high=1.0, seed=seed, epoch=epoch, stream=stream).tolist()
        for seed, epoch, stream in product(range(4), range(4), range(2))
    ]
    # by chance, two of these 640 float32 share a value in 1 of 80 such tests; the draws are fixed
    assert len({value for values in drawn for value in values}) == 4 * 4 * 2 * 20


def test_the_global_random_state_neither_matters_nor_moves() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = clip_uniform([1, 2], low=0.0, high=1.0, seed=0, epoch=0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(clip_uniform([1, 2], low=0.0, high=1.0, seed=0, epoch=0), first)


def test_each_clip_is_mixed_with_its_own_gain() -> None:
    near = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    far = torch.tensor([[10.0, 20.0], [10.0, 20.0], [0.0, 0.0]])
    mixed = mix_far(near, far, torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64))
    assert mixed.dtype == near.dtype
    assert torch.equal(mixed, torch.tensor([[6.0, 12.0], [3.0, 4.0], [5.0, 6.0]]))


def test_mixing_changes_neither_input() -> None:
    near, far = torch.ones(2, 3), torch.ones(2, 3)
    mix_far(near, far, torch.ones(2))
    assert torch.equal(near, torch.ones(2, 3))
    assert torch.equal(far, torch.ones(2, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_each_clip_is_cropped_from_its_own_start(dtype: torch.dtype) -> None:
    values = torch.arange(30).reshape(3, 10).to(dtype)
    pieces = crop(values, torch.tensor([0, 6, 3]), 4)
    assert pieces.dtype == dtype
    assert pieces.tolist() == [[0, 1, 2, 3], [16, 17, 18, 19], [23, 24, 25, 26]]
    assert torch.equal(crop(values, torch.zeros(3, dtype=torch.int64), 10), values)
