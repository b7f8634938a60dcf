"""The laws of all front ends; their formulas are tested beside, in two files of their own."""

import numpy as np
import pytest
import torch

from modeling.front_ends import FRONT_ENDS
from modeling.spectral_front_ends import StftFrontEnd

every_front_end = pytest.mark.parametrize("name", FRONT_ENDS)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def loud(rng):
    """Near and far of three clips, (3, 8000): machine and noise in both, noise mostly in far."""
    machine, noise = 0.1 * rng.standard_normal((2, 3, 8_000))
    near, far = machine + 0.5 * noise, 0.3 * machine + noise
    return torch.from_numpy(near).float(), torch.from_numpy(far).float()


def full(waveform):
    return torch.full((len(waveform),), waveform.shape[1])


@every_front_end
@pytest.mark.parametrize("num_samples", [8_000, 7_777])
def test_a_silent_far_channel_returns_near_bit_by_bit(name, num_samples, loud):
    near = loud[0][:, :num_samples]
    cleaned = FRONT_ENDS[name]()(near, torch.zeros_like(near), full(near))
    assert torch.equal(cleaned, near)


@every_front_end
def test_every_front_end_but_near_takes_something_away(name, loud):
    near, far = loud
    change = (FRONT_ENDS[name]()(near, far, full(near)) - near).square().mean()
    assert (change > 0.02 * near.square().mean()) == (name != "near")


@every_front_end
@pytest.mark.parametrize("gain", [1e-5, 0.5, 2.0, 300.0])
def test_scaling_both_channels_scales_the_result(name, gain, loud):
    near, far = loud
    front_end = FRONT_ENDS[name]()
    once = front_end(near, far, full(near))
    scaled = front_end(gain * near, gain * far, full(near))
    torch.testing.assert_close(scaled / gain, once, rtol=0, atol=1e-5 * float(near.abs().max()))


@every_front_end
def test_a_padded_clip_is_cleaned_as_it_is_alone(name, loud):
    near, far = (torch.cat([channel, channel[:1].flip(1)]) for channel in loud)
    lengths = torch.tensor([8_000, 5_001, 6_655, 5_001])  # 6655 = 12 * 512 + 511
    for i, length in enumerate(lengths.tolist()):
        near[i, length:] = far[i, length:] = torch.nan  # what lies there is never read
    front_end = FRONT_ENDS[name]()
    together = front_end(near, far, lengths)
    for i, length in enumerate(lengths.tolist()):
        one = slice(i, i + 1)
        alone = front_end(near[one, :length], far[one, :length], lengths[one])
        torch.testing.assert_close(together[one, :length], alone, rtol=0, atol=1e-6)
        assert not together[i, length:].any()


@every_front_end
def test_the_order_of_the_clips_does_not_matter(name, loud):
    near, far = loud
    front_end = FRONT_ENDS[name]()
    flipped = front_end(near.flip(0), far.flip(0), full(near))
    torch.testing.assert_close(flipped.flip(0), front_end(near, far, full(near)))


@every_front_end
@pytest.mark.parametrize(
    "kind",
    [
        *("silence", "constant", "far_equals_near", "near_is_silent", "offset", "clipped"),
        *("far_is_cut", "bang", "tone", "tiny"),
    ],
)
def test_degenerate_clips_stay_finite_and_no_louder(name, kind, loud):
    near, far = loud
    bang = torch.zeros_like(far)
    bang[:, 3_000:3_050] = 1e3 * far[:, 3_000:3_050]
    tone = torch.sin(0.3 * torch.arange(8_000)).expand(3, -1)
    near, far = {
        "silence": (0 * near, 0 * far),
        "constant": (torch.full_like(near, 0.3), torch.full_like(far, -0.2)),
        "far_equals_near": (near, near),
        "near_is_silent": (0 * near, far),
        "offset": (near + 0.5, far - 0.3),
        "clipped": (near.clamp(-0.05, 0.05), far.clamp(-0.05, 0.05)),
        "far_is_cut": (near, torch.where(torch.arange(8_000) < 2_000, far, 0.0)),
        "bang": (near + 0.5 * bang, far + bang),
        "tone": (0.5 * tone, tone),
        "tiny": (1e-30 * near, 1e-30 * far),
    }[kind]
    near = near.clone().requires_grad_()
    cleaned = FRONT_ENDS[name]()(near, far, full(near))
    cleaned.square().sum().backward()
    assert torch.isfinite(cleaned).all()
    assert torch.isfinite(near.grad).all()
    assert cleaned.norm() <= 1.1 * near.norm()  # adapting costs a little


@every_front_end
def test_the_gradient_reaches_both_channels(name, loud):
    channels = [channel[:, :2_000].clone().requires_grad_() for channel in loud]
    FRONT_ENDS[name]()(*channels, full(channels[0])).square().sum().backward()
    for channel in channels[: 1 if name == "near" else 2]:
        assert torch.isfinite(channel.grad).all()
        assert channel.grad.any(dim=1).all()


@every_front_end
def test_a_very_short_clip_is_cleaned_or_refused_with_the_length_it_takes(name, loud):
    front_end = FRONT_ENDS[name]()
    is_stft = isinstance(front_end, StftFrontEnd)
    shortest = front_end.n_fft // 2 + 1 if is_stft else 1
    for num_samples in {1, 63, 65, shortest}:
        near, far = (channel[:, :num_samples] for channel in loud)
        if num_samples < shortest:
            with pytest.raises(
                ValueError, match=f"of {num_samples} samples is too short .* {shortest}"
            ):
                front_end(near, far, full(near))
        else:
            assert torch.isfinite(front_end(near, far, full(near))).all()
    if name != "near":
        with pytest.raises(ValueError, match="A clip of 0 samples"):
            front_end(near, far, torch.tensor([num_samples, 0, num_samples]))


@every_front_end
def test_it_computes_in_float32_under_autocast_and_with_half_precision(name, loud):
    near, far = loud
    front_end = FRONT_ENDS[name]().to(torch.bfloat16)
    expected = front_end(near, far, full(near))
    assert expected.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(front_end(near, far, full(near)), expected)
    half = near.bfloat16(), far.bfloat16()
    expected = front_end(half[0].float(), half[1].float(), full(near))
    assert torch.equal(front_end(*half, full(near)), expected)


@every_front_end
def test_float64_waveforms_are_cleaned_in_float64(name, loud):
    near, far = loud
    front_end = FRONT_ENDS[name]()
    precise = front_end(near.double(), far.double(), full(near))
    assert precise.dtype == torch.float64
    torch.testing.assert_close(
        front_end(near, far, full(near)).double(), precise, rtol=0, atol=1e-6
    )


@every_front_end
def test_it_has_nothing_to_save(name):
    front_end = FRONT_ENDS[name]()
    assert not list(front_end.parameters())
    assert not list(front_end.buffers())


@every_front_end
def test_a_torn_pair_is_refused(name, loud):
    near, far = loud
    with pytest.raises(ValueError, match="must have one shape"):
        FRONT_ENDS[name]()(near, far[:, 1:], full(near))


@every_front_end
@pytest.mark.parametrize("lengths", [[8_001, 1_000, 1_000], [-1, 8_000, 8_000], [8_000, 8_000]])
def test_lengths_that_do_not_fit_the_batch_are_refused(name, lengths, loud):
    with pytest.raises(ValueError, match="for each of the 3 clips"):
        FRONT_ENDS[name]()(*loud, torch.tensor(lengths))


@pytest.mark.parametrize(
    ("name", "options", "due"),
    [
        ("nlms", {"step_size": 2.0}, "step_size=2.0 must be between 0 and 2"),
        ("nlms", {"regularization": -1e-3}, "0 or more"),
        ("lms", {"step_size": 0.0}, "between 0 and 2"),
        ("lms", {"num_taps": 0}, "a whole number, 1 or more"),
        ("lms", {"primary_delay": -1}, "a whole number, 0 or more"),
        ("rls", {"primary_delay": 0.5}, "a whole number, 0 or more"),
        ("rls", {"forgetting": 1.01}, "above 0, at most 1"),
        ("rls", {"regularization": 0}, "above 0"),
        ("rls", {"num_taps": 1.5}, "a whole number"),
        ("block_nlms", {"step_size": 1.5}, "at most 1"),
        ("block_nlms", {"power_smoothing": 1.0}, "below 1"),
        ("complex_least_squares", {"num_taps": 0}, "1 or more"),
        ("complex_least_squares", {"regularization": -1}, "0 or more"),
        ("spectral_subtraction", {"oversubtraction": -1}, "0 or more"),
        ("spectral_subtraction", {"floor": 1.5}, "between 0 and 1"),
        ("wiener", {"smoothing": 1.0}, "below 1"),
        ("wiener", {"floor": float("nan")}, "between 0 and 1"),
        ("coherence", {"smoothing": -0.5}, "None, or at least 0"),
    ],
)
def test_an_option_without_meaning_is_refused_with_its_range(name, options, due):
    with pytest.raises(ValueError, match=due):
        FRONT_ENDS[name](**options)
