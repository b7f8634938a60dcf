"""Each pooling against its formula in plain numpy loops, and the laws that all of them obey."""

import copy

import numpy as np
import pytest
import torch

from modeling.pooling import (
    POOLINGS,
    AttentiveStatisticsPooling,
    ClsPooling,
    GemPooling,
    MeanPooling,
    RdpPooling,
)

GRID = (6, 4)  # time, band
SIZE = 32
TIMES = [6, 2, 4]  # time steps of sound
OPTIONS = {
    "mean": [{}],
    "cls": [{}],
    "attentive_statistics": [{"size": 7}],
    "rdp": [{}, {"gamma": 19.0}, {"zero_below": 0.1, "tanh_above": 0.5}],
    "gem": [{}, {"p": 6.0, "gamma": 10.0}, {"zero_below": 0.1, "tanh_above": 0.5}],
}
EVERY = [(name, keep, extra) for name in POOLINGS for extra in OPTIONS[name] for keep in (0, 1)]
every_pooling = pytest.mark.parametrize(("name", "keep_bands", "extra"), EVERY)
every_patch_pooling = pytest.mark.parametrize(
    ("name", "keep_bands", "extra"), [case for case in EVERY if case[0] != "cls"]
)


@pytest.fixture
def hidden():
    return torch.randn(3, 24, SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def class_tokens():
    return torch.randn(3, 2, SIZE, generator=torch.Generator().manual_seed(1))


def make(name, keep_bands, extra):
    """Return a pooling in evaluation mode; learnt weights and statistics are drawn at random."""
    generator = torch.Generator().manual_seed(2)
    pooling = POOLINGS[name](SIZE, keep_bands=bool(keep_bands), **extra).eval()
    for key, tensor in pooling.state_dict().items():
        if key.endswith("running_var"):
            tensor.uniform_(0.5, 2.0, generator=generator)
        elif tensor.is_floating_point():
            tensor.normal_(std=0.3, generator=generator)
    return pooling


def mask_of(times):
    """Mask of clips with so many time steps of sound, (batch, 24)."""
    return (torch.arange(GRID[0]) < torch.tensor(times)[:, None]).repeat_interleave(GRID[1], dim=1)


def tokens_of(hidden, clip, time, keep_bands):
    """Return the patches pooled together, one float64 array (tokens, D) per band that is kept."""
    patches = hidden[clip].double().numpy()
    if not keep_bands:
        return [patches[: time * GRID[1]]]
    return [np.stack([patches[t * GRID[1] + b] for t in range(time)]) for b in range(GRID[1])]


# Laws of all poolings


@every_pooling
def test_what_stands_in_the_padding_does_not_matter(name, keep_bands, extra, hidden, class_tokens):
    pooling = make(name, keep_bands, extra)
    mask = mask_of(TIMES)
    torn = hidden.masked_fill(~mask[..., None], torch.nan)
    expected = pooling(hidden, mask, GRID, class_tokens)
    assert torch.equal(pooling(torn, mask, GRID, class_tokens), expected)


@every_pooling
def test_a_clip_is_pooled_in_a_batch_as_it_is_alone(name, keep_bands, extra, hidden, class_tokens):
    pooling = make(name, keep_bands, extra)
    together = pooling(hidden, mask_of(TIMES), GRID, class_tokens)
    for i, time in enumerate(TIMES):
        patches = time * GRID[1]
        mask = torch.ones(1, patches, dtype=torch.bool)
        alone = pooling(hidden[i : i + 1, :patches], mask, (time, GRID[1]), class_tokens[i : i + 1])
        torch.testing.assert_close(alone[0], together[i])


@every_pooling
def test_the_output_has_the_announced_size(name, keep_bands, extra, hidden, class_tokens):
    pooling = make(name, keep_bands, extra)
    bands = pooling.num_bands(GRID[1], class_tokens.shape[1])
    assert bands == ((2 if name == "cls" else GRID[1]) if keep_bands else 1)
    pooled = pooling(hidden, mask_of([6, 6, 6]), GRID, class_tokens)
    assert pooled.shape == (3, bands, pooling.output_size)


@every_patch_pooling
def test_gradients_are_finite_and_zero_in_the_padding(name, keep_bands, extra, hidden):
    mask = mask_of([6, 1, 4])
    hidden.requires_grad_()
    pooling = make(name, keep_bands, extra)
    pooling(hidden, mask, GRID, hidden[:, :0]).square().sum().backward()
    assert torch.isfinite(hidden.grad).all()
    assert hidden.grad[mask].any()
    assert not hidden.grad[~mask].any()


@every_patch_pooling
@pytest.mark.parametrize("value", [-1.0, 0.0, 0.3, 2.0])
def test_a_constant_clip_is_pooled_and_has_finite_gradients(name, keep_bands, extra, value):
    hidden = torch.full((3, 24, SIZE), value, requires_grad=True)
    pooled = make(name, keep_bands, extra)(hidden, mask_of(TIMES), GRID, hidden[:, :0])
    pooled.square().sum().backward()
    assert torch.isfinite(pooled).all()
    assert torch.isfinite(hidden.grad).all()


@every_pooling
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_pooled_in_float32(name, keep_bands, extra, dtype, hidden, class_tokens):
    pooling = make(name, keep_bands, extra)
    hidden, class_tokens = hidden.to(dtype), class_tokens.to(dtype)
    mask = mask_of(TIMES)
    pooled = pooling(hidden, mask, GRID, class_tokens)
    assert pooled.dtype == torch.float32
    assert torch.equal(pooled, pooling(hidden.float(), mask, GRID, class_tokens.float()))


@pytest.mark.parametrize("precision", ["model", "autocast"])
def test_learnt_weights_may_be_in_half_precision(precision, hidden):
    pooling = make("attentive_statistics", 0, {"size": 7})
    expected = pooling(hidden, mask_of(TIMES), GRID, hidden[:, :0])
    for training in (False, True):
        pooling.train(training)
        if precision == "model":
            pooled = pooling.bfloat16()(hidden.bfloat16(), mask_of(TIMES), GRID, hidden[:, :0])
        else:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                pooled = pooling(hidden, mask_of(TIMES), GRID, hidden[:, :0])
        assert pooled.dtype == torch.float32
        if not training:
            error = (pooled - expected).norm() / expected.norm()
            assert error < 0.03  # bfloat16 keeps 8 bits


# Formulas


def test_the_mean_runs_over_time_and_bands(hidden):
    pooled = MeanPooling(SIZE)(hidden, mask_of(TIMES), GRID, hidden[:, :0])
    expected = [np.mean([hidden[1, t * 4 + b].numpy() for t in range(2) for b in range(4)], axis=0)]
    np.testing.assert_allclose(pooled[1].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_kept_bands_are_averaged_over_time_only(hidden):
    pooled = MeanPooling(SIZE, keep_bands=True)(hidden, mask_of(TIMES), GRID, hidden[:, :0])
    expected = [np.mean([hidden[2, t * 4 + b].numpy() for t in range(4)], axis=0) for b in range(4)]
    np.testing.assert_allclose(pooled[2].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_class_tokens_are_kept_or_averaged(hidden, class_tokens):
    kept = ClsPooling(SIZE, keep_bands=True)(hidden, mask_of(TIMES), GRID, class_tokens)
    assert torch.equal(kept, class_tokens)
    pooled = ClsPooling(SIZE)(hidden, mask_of(TIMES), GRID, class_tokens)
    torch.testing.assert_close(pooled[:, 0], (class_tokens[:, 0] + class_tokens[:, 1]) / 2)


def rdp_weights(tokens, gamma):
    """Weights of RDP, (tokens,), for one group of tokens (tokens, D)."""
    mean = sum(tokens) / len(tokens)
    deviation = np.array([np.sqrt(sum((x - mean) ** 2)) for x in tokens])
    largest = max(deviation)
    relative = deviation / largest if largest > 0 else deviation
    weights = (1 + relative) ** gamma
    return weights / weights.sum()


@pytest.mark.parametrize("keep_bands", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 4.0, 19.0])
def test_rdp_weighs_tokens_by_their_distance_from_the_mean(gamma, keep_bands, hidden):
    pooling = RdpPooling(SIZE, gamma=gamma, keep_bands=keep_bands)
    pooled = pooling(hidden, mask_of(TIMES), GRID, hidden[:, :0])
    for clip, time in enumerate(TIMES):
        for band, tokens in enumerate(tokens_of(hidden, clip, time, keep_bands)):
            weights = rdp_weights(tokens, gamma)
            expected = sum(w * x for w, x in zip(weights, tokens, strict=True))
            np.testing.assert_allclose(pooled[clip, band].numpy(), expected, atol=1e-5)


def test_rdp_of_a_constant_clip_is_that_constant():
    hidden = torch.full((1, 24, SIZE), 3.0)
    pooled = RdpPooling(SIZE)(hidden, mask_of([6]), GRID, hidden[:, :0])
    torch.testing.assert_close(pooled, torch.full((1, 1, SIZE), 3.0))


def test_a_large_gamma_picks_the_token_that_deviates_most():
    hidden = torch.randn(1, 24, SIZE, generator=torch.Generator().manual_seed(3))
    hidden[0, 5] *= 20
    pooled = RdpPooling(SIZE, gamma=1e4)(hidden, mask_of([6]), GRID, hidden[:, :0])
    torch.testing.assert_close(pooled[0, 0], hidden[0, 5])


@pytest.mark.parametrize("keep_bands", [False, True])
@pytest.mark.parametrize("gamma", [None, 10.0])
@pytest.mark.parametrize("p", [1.0, 3.0, 6.0])
def test_gem_is_the_root_of_the_mean_power(p, gamma, keep_bands, hidden):
    pooling = GemPooling(SIZE, p=p, gamma=gamma, keep_bands=keep_bands)
    pooled = pooling(hidden, mask_of(TIMES), GRID, hidden[:, :0])
    for clip, time in enumerate(TIMES):
        for band, tokens in enumerate(tokens_of(hidden, clip, time, keep_bands)):
            weights = (
                [1 / len(tokens)] * len(tokens) if gamma is None else rdp_weights(tokens, gamma)
            )
            mean = sum(w * np.maximum(x, 0) ** p for w, x in zip(weights, tokens, strict=True))
            np.testing.assert_allclose(pooled[clip, band].numpy(), mean ** (1 / p), atol=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_gem_neither_overflows_nor_vanishes(scale, hidden):
    pooling, mask = GemPooling(SIZE, p=6.0), mask_of(TIMES)
    expected = scale * pooling(hidden, mask, GRID, hidden[:, :0])
    pooled = pooling(scale * hidden, mask, GRID, hidden[:, :0])
    torch.testing.assert_close(pooled, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("p", [1.0, 3.0])
def test_gem_has_the_derivative_of_its_formula(p, hidden):
    hidden = hidden.double().requires_grad_()
    mask = mask_of([6, 6, 6])
    GemPooling(SIZE, p=p)(hidden, mask, GRID, hidden[:, :0]).sum().backward()
    found, hidden.grad = hidden.grad, None
    hidden.relu().pow(p).mean(dim=1).pow(1 / p).sum().backward()
    torch.testing.assert_close(found, hidden.grad)


def test_a_generalised_mean_needs_a_positive_exponent():
    with pytest.raises(ValueError, match=r"p=0.* above 0"):
        GemPooling(SIZE, p=0)


@pytest.mark.parametrize("pooling", [RdpPooling, GemPooling])
def test_small_elements_are_dropped_and_large_ones_bounded_before_all_else(pooling, hidden):
    mask, none = mask_of(TIMES), hidden[:, :0]
    limited = torch.from_numpy(
        np.vectorize(lambda x: 0.0 if x < 0.1 else np.tanh(x) if x > 0.5 else x)(hidden.numpy())
    ).float()
    found = pooling(SIZE, zero_below=0.1, tanh_above=0.5)(hidden, mask, GRID, none)
    torch.testing.assert_close(found, pooling(SIZE)(limited, mask, GRID, none))


def attentive_statistics(groups, state, training):
    """Attentive statistics of groups of tokens (tokens, D) in float64 -> (groups, size)."""

    def linear(name, x):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def batch_norm(name, x):
        """Normalise rows (rows, D), in training by their own statistics."""
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        if training:
            mean, var = x.mean(axis=0), x.var(axis=0)
        return (x - mean) / np.sqrt(var + 1e-5) * state[f"{name}.weight"] + state[f"{name}.bias"]

    def std(values, mean, weights):
        second = sum(w * x**2 for w, x in zip(weights, values, strict=True))
        return np.sqrt(np.maximum(second - mean**2, 1e-4))

    inputs = []
    for tokens in groups:
        mean = tokens.mean(axis=0)
        deviation = std(tokens, mean, np.full(len(tokens), 1 / len(tokens)))
        inputs.append([np.concatenate([h, mean, deviation]) for h in tokens])
    inner = np.maximum(linear("inner", np.concatenate(inputs)), 0)
    logits = linear("attention", np.tanh(batch_norm("inner_norm", inner)))
    statistics = []
    for tokens, part in zip(
        groups, np.split(logits, np.cumsum([len(g) for g in groups])[:-1]), strict=True
    ):
        weights = np.exp(part) / np.exp(part).sum(axis=0)
        mean = (weights * tokens).sum(axis=0)
        statistics.append(np.concatenate([mean, std(tokens, mean, weights)]))
    mixed = linear("mix", batch_norm("statistics_norm", np.stack(statistics)))
    return linear("output", batch_norm("mix_norm", mixed))


@pytest.mark.parametrize("keep_bands", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_attentive_statistics_follow_their_formula(training, keep_bands, hidden):
    pooling = make("attentive_statistics", keep_bands, {"size": 7})
    state = {name: tensor.double().numpy() for name, tensor in pooling.state_dict().items()}
    state = {name: array.copy() for name, array in state.items()}
    hidden[1, :8] = 0.5  # a constant clip: both standard deviations are clamped
    mask = mask_of(TIMES)
    torn = hidden.masked_fill(~mask[..., None], torch.nan)
    pooled = pooling.train(training)(torn, mask, GRID, hidden[:, :0]).detach().numpy()
    groups = [
        tokens
        for clip, time in enumerate(TIMES)
        for tokens in tokens_of(hidden, clip, time, keep_bands)
    ]
    expected = attentive_statistics(groups, state, training).reshape(pooled.shape)
    # Batch statistics over three clips divide by small numbers.
    np.testing.assert_allclose(pooled, expected, rtol=1e-3, atol=1e-3 if training else 1e-5)


def test_padding_is_no_part_of_the_running_statistics(hidden):
    statistics = []
    untouched = AttentiveStatisticsPooling(SIZE, size=7)
    mask = mask_of(TIMES)
    for filler in (0.0, 100.0, torch.nan):
        pooling = copy.deepcopy(untouched)
        pooling(hidden.masked_fill(~mask[..., None], filler), mask, GRID, hidden[:, :0])
        inner = pooling.inner_norm
        statistics.append(torch.cat([inner.running_mean, inner.running_var]))
        assert int(inner.num_batches_tracked) == 1
    assert torch.equal(statistics[0], statistics[1])
    assert torch.equal(statistics[0], statistics[2])
    assert torch.isfinite(statistics[0]).all()


def test_every_weight_of_the_attention_trains(hidden):
    pooling = AttentiveStatisticsPooling(SIZE, size=7)
    pooling(hidden, mask_of(TIMES), GRID, hidden[:, :0]).square().sum().backward()
    for name, parameter in pooling.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
    # A shift before a normalisation or before a softmax changes nothing.
    without = {"attention.bias", "statistics_norm.bias", "mix.bias"}
    names = {name for name, p in pooling.named_parameters() if p.grad.abs().max() > 1e-5}
    assert names >= {name for name, _ in pooling.named_parameters()} - without


# Precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype):
    hidden = torch.full((1, 24, 8), 1.0, dtype=dtype)
    hidden[0, 0] = 4096  # in bfloat16, 4096 + 1 is 4096
    pooled = MeanPooling(8)(hidden, torch.ones(1, 24, dtype=torch.bool), GRID, hidden[:, :0])
    assert torch.equal(pooled, torch.full((1, 1, 8), (4096 + 23) / 24))


@pytest.mark.parametrize("name", ["mean", "cls", "rdp", "gem"])
def test_float64_stays_float64(name, hidden, class_tokens):
    pooling = POOLINGS[name](SIZE)
    args = (mask_of(TIMES), GRID)
    pooled = pooling(hidden.double(), *args, class_tokens.double())
    assert pooled.dtype == torch.float64
    torch.testing.assert_close(pooled.float(), pooling(hidden, *args, class_tokens))
    if name != "cls":
        constant = torch.full_like(hidden, 1 / 3, dtype=torch.float64)
        pooled = pooling(constant, *args, class_tokens)
        torch.testing.assert_close(pooled, constant[:, :1], rtol=1e-14, atol=0)
