"""Random numbers per clip, what is mixed into clips, and pieces of them."""

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nearfar.augmentation import (
    add_noise,
    clip_beta,
    clip_uniform,
    crop,
    draw_partner,
    fit_length,
    mask_spans,
    mix_clips,
    mix_far,
    piece_in_a_loop,
    white_noise,
)


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


def test_a_piece_begins_anew_where_its_clip_ends() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0, 9.0], [1.0, 2.0, 3.0, 4.0]])
    pieces = piece_in_a_loop(values, torch.tensor([2, 0]), torch.tensor([3, 4]), 6)
    assert pieces.tolist() == [[3, 1, 2, 3, 1, 2], [1, 2, 3, 4, 1, 2]]


@pytest.mark.parametrize("num_samples", [2, 3, 5])
def test_a_clip_is_cut_or_filled_with_silence_to_its_length(num_samples: int) -> None:
    fitted = fit_length(torch.tensor([[1.0, 2.0, 3.0]]), num_samples)
    assert fitted.tolist() == [[1.0, 2.0, 3.0, 0.0, 0.0][:num_samples]]


def test_only_clips_with_a_partner_are_mixed() -> None:
    values, partners = torch.eye(3), torch.full((2, 3), 4.0)
    before = values.clone()
    mixed = mix_clips(values, partners, torch.tensor([2, 0]), torch.tensor([0.25, 1.0]))
    assert mixed.tolist() == [[1, 0, 0], [0, 1, 0], [3, 3, 3.25]]
    assert torch.equal(values, before)


def test_noise_has_the_power_that_the_ratio_says_whatever_its_level() -> None:
    generator = torch.Generator().manual_seed(0)
    signal, noise = torch.randn(2, 3, 1000, generator=generator)
    mask = torch.ones(3, 1000, dtype=torch.long)
    mask[1, 600:] = 0
    signal = signal * mask
    ratios = torch.tensor([-5.0, 0.0, 20.0])
    once = add_noise(signal, noise, ratios, mask)
    torch.testing.assert_close(add_noise(signal, 1e-3 * noise, ratios, mask), once)
    added = once - signal
    found = 10 * (signal.square().sum(1) / added.square().sum(1)).log10()
    torch.testing.assert_close(found, ratios, atol=1e-3, rtol=0)
    assert not added[1, 600:].any()


def test_silence_gets_no_noise_and_silent_noise_changes_nothing() -> None:
    clip, mask = torch.ones(1, 8), torch.ones(1, 8, dtype=torch.long)
    silence = torch.zeros(1, 8)
    assert torch.equal(add_noise(silence, clip, torch.tensor([5.0]), mask), silence)
    assert torch.equal(add_noise(clip, silence, torch.tensor([5.0]), mask), clip)


def test_a_longer_noise_begins_with_the_shorter_one() -> None:
    long, short = (white_noise([3, 8], n, seed=0, epoch=1) for n in (500, 123))
    assert torch.equal(long[:, :123], short)
    assert long.std().item() == pytest.approx(1.0, abs=0.15)
    assert not torch.equal(long[0], long[1])


def test_masks_have_every_width_up_to_the_longest_and_lie_anywhere() -> None:
    common = {"seed": 0, "epoch": 0, "stream": 8}
    spans = mask_spans(range(3000), 4, probability=1.0, **common)
    assert spans[:, 1].unique().tolist() == [0, 1, 2, 3, 4]
    assert ((spans[:, 0] >= 0) & (spans[:, 0] < 1)).all()
    assert torch.histc(spans[:, 0], 10, 0, 1).min() > 200
    masked = (mask_spans(range(3000), 4, probability=0.5, **common)[:, 1] > 0).float().mean()
    assert masked.item() == pytest.approx(0.5 * 4 / 5, abs=0.04)


def test_a_partner_is_any_clip_and_there_is_one_as_often_as_asked() -> None:
    common = {"seed": 2, "epoch": 0, "stream": 2}
    partners = [draw_partner(i, 5, probability=0.5, **common) for i in range(1000)]
    drawn = [partner for partner in partners if partner is not None]
    assert 420 < len(drawn) < 580
    assert set(drawn) == set(range(5))
    assert {draw_partner(i, 5, probability=0.0, **common) for i in range(100)} == {None}


def test_shares_of_mixup_follow_a_beta_distribution() -> None:
    shares = clip_beta(range(4000), alpha=0.35, seed=0, epoch=0, stream=3).double()
    assert shares.mean().item() == pytest.approx(0.5, abs=0.03)
    variance = 1 / (4 * (2 * 0.35 + 1))  # of Beta(a, a)
    assert shares.var().item() == pytest.approx(variance, rel=0.05)
