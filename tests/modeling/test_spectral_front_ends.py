"""Least squares and gains per frequency, derived a second time in plain float64 numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling.spectral_front_ends import (
    CoherenceGain,
    ComplexLeastSquares,
    SpectralSubtraction,
    WienerGain,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def loud(rng):
    """Near and far of two clips, (2, 8000) float64: machine and noise in both."""
    machine, noise = 0.1 * rng.standard_normal((2, 2, 8_000))
    return torch.from_numpy(machine + 0.5 * noise), torch.from_numpy(0.3 * machine + noise)


def full(waveform):
    return torch.full((len(waveform),), waveform.shape[1])


def by_hand(near, far, change, n_fft=1024, hop_length=512):
    """Clean one clip; `change` maps both spectra, (frames, bins) each, to the cleaned one."""
    num_samples = len(near)
    peak = max(np.abs(near).max(), np.abs(far).max())
    scale = 0.9 / peak if peak > 1e-12 else 1.0
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    num_frames = 1 + num_samples // hop_length

    def stft(waveform):
        padded = np.pad(scale * waveform, n_fft // 2, mode="reflect")
        starts = range(0, num_frames * hop_length, hop_length)
        return np.array([np.fft.rfft(window * padded[s : s + n_fft]) for s in starts])

    cleaned = change(stft(near), stft(far))
    total = np.zeros(n_fft + num_frames * hop_length)
    weight = np.zeros_like(total)
    for t in range(num_frames):
        frame = slice(t * hop_length, t * hop_length + n_fft)
        total[frame] += window * np.fft.irfft(cleaned[t], n_fft)
        weight[frame] += window**2
    inside = slice(n_fft // 2, n_fft // 2 + num_samples)
    return total[inside] / weight[inside] / scale


def check(front_end, near, far, change, **stft):
    """Fail unless a front end is `change`, up to the last samples, which have no window."""
    cleaned = front_end(near, far, full(near))
    for i in range(len(near)):
        expected = by_hand(near[i].numpy(), far[i].numpy(), change, **stft)
        np.testing.assert_allclose(cleaned[i].numpy(), expected, rtol=0, atol=1e-12)


def one_tap(near, far):
    """Methods 2.1, one frame and one frequency after the other."""
    cleaned = np.empty_like(near)
    for f in range(near.shape[1]):
        cross = power = 0.0
        for t in range(near.shape[0]):
            cross += near[t, f] * far[t, f].conjugate()
            power += abs(far[t, f]) ** 2
        cleaned[:, f] = near[:, f] - cross / (power + 1e-12) * far[:, f]
    return cleaned


@pytest.mark.parametrize("num_samples", [513, 1_024, 5_001, 8_000])
def test_complex_least_squares_equals_a_plain_loop(num_samples, loud):
    near, far = (channel[:, :num_samples] for channel in loud)
    check(ComplexLeastSquares(), near, far, one_tap)


def test_complex_least_squares_follows_its_options(loud):
    stft = {"n_fft": 512, "hop_length": 128}
    check(ComplexLeastSquares(**stft), *loud, one_tap, **stft)


@pytest.mark.parametrize("regularization", [0.0, 0.3])
@pytest.mark.parametrize("num_taps", [2, 3])
def test_several_taps_are_the_least_squares_fit_of_delayed_frames(num_taps, regularization, loud):
    def fit(near, far):
        """Solve the stacked equations, the penalty as further rows, and never form a product."""
        cleaned = np.empty_like(near)
        padded = np.concatenate([np.zeros((num_taps - 1, far.shape[1])), far])
        for f in range(near.shape[1]):
            rows = np.stack(
                [padded[num_taps - 1 - tap :, f][: len(near)] for tap in range(num_taps)], axis=1
            )
            share = max(regularization, num_taps**2 * np.finfo(float).eps)
            penalty = np.sqrt(share * (np.abs(rows) ** 2).sum() / num_taps + 1e-12)
            stacked = np.concatenate([rows, penalty * np.eye(num_taps)])
            target = np.concatenate([near[:, f], np.zeros(num_taps)])
            path = np.linalg.lstsq(stacked, target, rcond=None)[0]
            cleaned[:, f] = near[:, f] - rows @ path
        return cleaned

    stft = {"n_fft": 256, "hop_length": 64}
    front_end = ComplexLeastSquares(num_taps=num_taps, regularization=regularization, **stft)
    check(front_end, *loud, fit, **stft)


def test_regularisation_of_one_halves_what_is_taken(loud):
    near, far = loud
    whole = near - ComplexLeastSquares()(near, far, full(near))
    half = near - ComplexLeastSquares(regularization=1.0)(near, far, full(near))
    torch.testing.assert_close(half, whole / 2, rtol=1e-9, atol=1e-12)


def test_several_taps_take_what_came_late(rng):
    noise = 0.2 * rng.standard_normal(48_000)
    late = np.zeros(48_000)
    late[900:] = 0.8 * noise[:-900]  # as long as the window
    near, far = (torch.from_numpy(x)[None] for x in (late, noise))
    rest = [
        float(front_end(near, far, full(near)).square().mean())
        for front_end in (
            ComplexLeastSquares(hop_length=256),
            ComplexLeastSquares(hop_length=256, num_taps=6),
        )
    ]
    assert 10 * np.log10(rest[0] / rest[1]) > 10


def test_complex_least_squares_removes_noise_that_came_along_a_linear_path(rng):
    t = np.arange(32_000) / 16_000
    machine, noise = 0.05 * np.sin(2 * np.pi * 440 * t), 0.2 * rng.standard_normal(32_000)
    path = np.array([0.0, 0.0, 0.7, -0.3, 0.1])  # far to near, in samples
    near, far = (
        torch.from_numpy(x)[None] for x in (machine + np.convolve(noise, path)[:32_000], noise)
    )
    cleaned = ComplexLeastSquares()(near, far, full(near))
    before, after = (
        float((x - torch.from_numpy(machine)).square().mean()) for x in (near, cleaned)
    )
    assert 10 * np.log10(before / after) > 15  # 62 frames per frequency leave about 1/62


@pytest.mark.parametrize("num_taps", [1, 3])
def test_far_equal_to_near_leaves_nothing(num_taps, loud):
    near = loud[0].float()
    cleaned = ComplexLeastSquares(num_taps=num_taps)(near, near, full(near))
    assert cleaned.abs().max() < 1e-5


@pytest.mark.parametrize(("factor", "floor"), [(1.0, 0.1), (0.5, 0.0), (2.0, 0.3)])
def test_spectral_subtraction_equals_a_plain_loop(factor, floor, loud):
    def subtract(near, far):
        cleaned = np.empty_like(near)
        for index in np.ndindex(*near.shape):
            magnitude, noise = abs(near[index]), factor * abs(far[index])
            kept = magnitude - noise if magnitude > noise else floor * magnitude
            cleaned[index] = kept * np.exp(1j * np.angle(near[index]))
        return cleaned

    front_end = SpectralSubtraction(oversubtraction=factor, floor=floor)
    check(front_end, *loud, subtract, n_fft=512, hop_length=256)


def averages(values, smoothing):
    """Average over frames, starting from the mean."""
    average, result = values.mean(axis=0), []
    for value in values:
        average = smoothing * average + (1 - smoothing) * value
        result.append(average)
    return np.array(result)


@pytest.mark.parametrize(
    ("factor", "floor", "smoothing"), [(1.0, 0.0, 0.0), (1.5, 0.2, 0.0), (1.0, 0.1, 0.9)]
)
def test_the_wiener_gain_equals_a_plain_loop(factor, floor, smoothing, loud):
    def weigh(near, far):
        near_power = averages(np.abs(near) ** 2, smoothing)
        far_power = averages(np.abs(far) ** 2, smoothing)
        gain = (near_power + 1e-12) / (near_power + factor * far_power + 1e-12)
        return np.maximum(gain, floor) * near

    front_end = WienerGain(oversubtraction=factor, floor=floor, smoothing=smoothing)
    check(front_end, *loud, weigh, n_fft=512, hop_length=256)


@pytest.mark.parametrize("smoothing", [None, 0.95, 0.5])
def test_the_coherence_gain_equals_a_plain_loop(smoothing, loud):
    def average(values):
        return values.mean(axis=0) if smoothing is None else averages(values, smoothing)

    def weigh(near, far):
        cross = np.abs(average(near * far.conj())) ** 2
        power = average(np.abs(near) ** 2) * average(np.abs(far) ** 2)
        return (1 - np.minimum(cross / (power + 1e-24), 1)) * near

    check(CoherenceGain(smoothing=smoothing), *loud, weigh)


def test_the_coherence_gain_keeps_what_far_does_not_hear_and_mutes_what_it_does(rng):
    own, common = torch.from_numpy(0.1 * rng.standard_normal((2, 1, 64_000)))
    lengths = torch.tensor([64_000])
    kept = CoherenceGain()(own, common, lengths)
    assert (kept - own).norm() < 0.05 * own.norm()  # 126 frames: a coherence of about 1/126
    muted = CoherenceGain()(0.3 * common.roll(5, 1), common, lengths)
    assert muted.norm() < 0.05 * 0.3 * common.norm()


@pytest.mark.parametrize("cls", [SpectralSubtraction, WienerGain])
def test_no_oversubtraction_is_near(cls, loud):
    near, far = loud
    assert torch.equal(cls(oversubtraction=0)(near, far, full(near)), near)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    far_gain=st.floats(0.0, 10.0),
    factor=st.floats(0.0, 4.0),
    floor=st.floats(0.0, 1.0),
    cls=st.sampled_from([SpectralSubtraction, WienerGain]),
)
def test_a_gain_keeps_the_phase_and_lies_between_floor_and_one(seed, far_gain, factor, floor, cls):
    generator = torch.Generator().manual_seed(seed)
    near, far = torch.randn(2, 1, 9, 20, dtype=torch.complex128, generator=generator)
    gain = 1 - cls(oversubtraction=factor, floor=floor).removed(near, far_gain * far) / near
    assert gain.imag.abs().max() < 1e-12
    assert gain.real.max() < 1 + 1e-12
    least = floor if cls is WienerGain else 0.0  # a difference may be smaller than the floor
    assert gain.real.min() > least - 1e-12


@pytest.mark.parametrize("rest", [0, 256, 400, 407, 408, 450, 500, 511])
@pytest.mark.parametrize("n_fft", [1024, 2048])
def test_no_clip_ends_in_a_click(rest, n_fft, rng):
    hop_length = n_fft // 2
    near, far = torch.from_numpy(0.1 * rng.standard_normal((2, 4, 6 * hop_length + rest)))
    front_end = ComplexLeastSquares(n_fft=n_fft, hop_length=hop_length)
    for dtype in (torch.float32, torch.float64):
        cleaned = front_end(near.to(dtype), far.to(dtype), full(near))
        assert cleaned[:, -hop_length:].abs().max() < 4 * near.abs().max()


def test_a_clip_that_cannot_be_reflected_is_refused_with_its_length(loud):
    near, far = (channel[:, :512] for channel in loud)
    with pytest.raises(ValueError, match=r"A clip of 512 samples is too short .* 513 or more"):
        ComplexLeastSquares()(near, far, full(near))


@pytest.mark.parametrize("hop_length", [0, 513, -512])
def test_a_hop_that_loses_samples_is_refused(hop_length):
    with pytest.raises(ValueError, match="between 1 and half of n_fft=1024"):
        ComplexLeastSquares(hop_length=hop_length)
