import numpy as np
import pytest
import torch

from modeling.pooling import POOLINGS, MeanPooling

GRID = (6, 4)  # time, band
OPTIONS = [(name, keep) for name in POOLINGS for keep in (False, True)]
every_pooling = pytest.mark.parametrize(("name", "keep_bands"), OPTIONS)


@pytest.fixture
def hidden():
    return torch.randn(3, 24, 8, generator=torch.Generator().manual_seed(0))


def mask_of(times):
    """Mask of clips with so many time steps of sound, (batch, 24)."""
    return (torch.arange(GRID[0]) < torch.tensor(times)[:, None]).repeat_interleave(GRID[1], dim=1)


@every_pooling
def test_what_stands_in_the_padding_does_not_matter(name, keep_bands, hidden):
    pooling = POOLINGS[name](8, keep_bands=keep_bands).eval()
    mask = mask_of([6, 2, 4])
    torn = hidden.masked_fill(~mask[..., None], torch.nan)
    assert torch.equal(pooling(torn, mask, GRID), pooling(hidden, mask, GRID))


@every_pooling
def test_a_clip_is_pooled_in_a_batch_as_it_is_alone(name, keep_bands, hidden):
    pooling = POOLINGS[name](8, keep_bands=keep_bands).eval()
    times = [6, 2, 4]
    together = pooling(hidden, mask_of(times), GRID)
    for i, time in enumerate(times):
        patches = time * GRID[1]
        alone = hidden[i : i + 1, :patches]
        mask = torch.ones(1, patches, dtype=torch.bool)
        torch.testing.assert_close(pooling(alone, mask, (time, GRID[1]))[0], together[i])


@every_pooling
def test_the_output_has_the_announced_size(name, keep_bands, hidden):
    pooling = POOLINGS[name](8, keep_bands=keep_bands).eval()
    bands = GRID[1] if keep_bands else 1
    assert pooling(hidden, mask_of([6, 6, 6]), GRID).shape == (3, bands, pooling.output_size)


@every_pooling
def test_gradients_are_finite_and_zero_in_the_padding(name, keep_bands, hidden):
    mask = mask_of([6, 1, 4])
    hidden.requires_grad_()
    POOLINGS[name](8, keep_bands=keep_bands).eval()(hidden, mask, GRID).square().sum().backward()
    assert torch.isfinite(hidden.grad).all()
    assert hidden.grad[mask].any()
    assert not hidden.grad[~mask].any()


def test_the_mean_runs_over_time_and_bands(hidden):
    pooled = MeanPooling(8)(hidden, mask_of([6, 2, 4]), GRID)
    expected = [np.mean([hidden[1, t * 4 + b].numpy() for t in range(2) for b in range(4)], axis=0)]
    np.testing.assert_allclose(pooled[1].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_kept_bands_are_averaged_over_time_only(hidden):
    pooled = MeanPooling(8, keep_bands=True)(hidden, mask_of([6, 2, 4]), GRID)
    expected = [np.mean([hidden[2, t * 4 + b].numpy() for t in range(4)], axis=0) for b in range(4)]
    np.testing.assert_allclose(pooled[2].numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype):
    hidden = torch.full((1, 24, 8), 1.0, dtype=dtype)
    hidden[0, 0] = 4096  # in bfloat16, 4096 + 1 is 4096
    pooled = MeanPooling(8)(hidden, torch.ones(1, 24, dtype=torch.bool), GRID)
    assert torch.equal(pooled, torch.full((1, 1, 8), (4096 + 23) / 24))


def test_float64_stays_float64(hidden):
    pooled = MeanPooling(8)(hidden.double(), mask_of([6, 6, 6]), GRID)
    torch.testing.assert_close(pooled[:, 0], hidden.double().mean(dim=1), rtol=0, atol=1e-14)
