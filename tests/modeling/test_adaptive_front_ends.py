"""Adaptive filters, derived a second time: loops over samples, blocks and frames in numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling.adaptive_front_ends import FrequencyDomainNlms, Lms, Nlms, Rls, window_energy
from modeling.spectral_front_ends import ComplexLeastSquares

ADAPTIVE = {"lms": Lms, "nlms": Nlms, "block_nlms": FrequencyDomainNlms, "rls": Rls}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def loud(rng):
    """Near and far of two clips, (2, 3000) float64: machine and noise in both."""
    machine, noise = 0.1 * rng.standard_normal((2, 2, 3_000))
    return torch.from_numpy(machine + 0.5 * noise), torch.from_numpy(0.3 * machine + noise)


def full(waveform):
    return torch.full((len(waveform),), waveform.shape[1])


def level(near, far):
    return 0.9 / max(np.abs(near).max(), np.abs(far).max())


def by_samples(near, far, num_taps, gain_of, delay=0):
    """Adapt one clip sample by sample; `gain_of` maps all x^T x to the gains g."""
    scale = level(near, far)
    primary = scale * np.concatenate([np.zeros(delay), near])
    reference = scale * np.concatenate([np.zeros(num_taps - 1), far, np.zeros(delay)])
    taps = [reference[n : n + num_taps][::-1] for n in range(len(primary))]
    gains = gain_of(np.array([x @ x for x in taps]))
    weights, errors = np.zeros(num_taps), []
    for d, x, gain in zip(primary, taps, gains, strict=True):
        error = d - weights @ x
        weights = weights + gain * error * x
        errors.append(error)
    return np.array(errors[delay:]) / scale


def nlms_gains(step_size, regularization=1e-3):
    def gains(energy):
        least = max(regularization * energy.mean(), 100 * np.finfo(float).eps * energy.max())
        return np.where(energy > 0, step_size / np.maximum(least + energy, 1e-12), 0)

    return gains


@pytest.mark.parametrize("num_samples", [1, 64, 65, 3_000])
@pytest.mark.parametrize("num_taps", [1, 7, 100, 512])
def test_blocks_of_nlms_equal_the_loop_over_samples(num_taps, num_samples, loud):
    near, far = (channel[:, :num_samples] for channel in loud)
    cleaned = Nlms(num_taps=num_taps, step_size=0.5)(near, far, full(near))
    for i in range(len(near)):
        expected = by_samples(near[i].numpy(), far[i].numpy(), num_taps, nlms_gains(0.5))
        np.testing.assert_allclose(cleaned[i].numpy(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("num_taps", "step_size"), [(1, 0.5), (64, 1.9), (300, 0.1)])
def test_blocks_of_lms_equal_the_loop_over_samples(num_taps, step_size, loud):
    near, far = loud
    cleaned = Lms(num_taps=num_taps, step_size=step_size)(near, far, full(near))
    for i in range(len(near)):
        expected = by_samples(
            *(near[i].numpy(), far[i].numpy(), num_taps),
            lambda energy: np.full_like(energy, step_size / energy.max()),
        )
        np.testing.assert_allclose(cleaned[i].numpy(), expected, rtol=0, atol=1e-10)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    num_samples=st.integers(1, 300),
    num_taps=st.integers(1, 150),
    delay=st.integers(0, 100),
    step_size=st.floats(0.01, 1.9),
    regularization=st.sampled_from([0.0, 1e-3, 0.5]),
    dead=st.floats(0.0, 1.0),
)
def test_so_they_do_for_any_options(
    seed, num_samples, num_taps, delay, step_size, regularization, dead
):
    near, far = np.random.default_rng(seed).standard_normal((2, num_samples))
    far[: round(dead * num_samples)] = 0.0
    options = {"step_size": step_size, "regularization": regularization}
    front_end = Nlms(num_taps=num_taps, primary_delay=delay, **options)
    channels = torch.from_numpy(near)[None], torch.from_numpy(far)[None]
    cleaned = front_end(*channels, torch.tensor([num_samples]))[0].numpy()
    expected = by_samples(near, far, num_taps, nlms_gains(**options), delay)
    # Steps near 2 hardly forget, so what is rounded stays.
    np.testing.assert_allclose(cleaned, expected, rtol=0, atol=1e-7 * np.abs(expected).max())


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=60), st.integers(1, 80))
def test_the_energy_of_a_window_is_the_sum_of_its_squares(samples, length):
    energy = window_energy(torch.tensor([samples], dtype=torch.float64), length)[0].tolist()
    for n in range(len(samples)):
        due = sum(x * x for x in samples[max(0, n + 1 - length) : n + 1])
        assert energy[n] == pytest.approx(due, rel=1e-12)


def test_silence_after_a_bang_has_no_energy():
    waveform = torch.zeros(1, 1_000)
    waveform[0, 100] = 1e4
    energy = window_energy(waveform, 64)[0]
    assert energy[100:164].tolist() == [1e8] * 64
    assert not energy[164:].any()


def frequency_domain_by_hand(near, far, taps, step_size, smoothing, regularization):
    """Adapt one clip block by block with matrices: no FFT but that of numpy for single vectors."""
    scale = level(near, far)
    num_blocks = -(-len(near) // taps)
    primary, reference = np.zeros((2, num_blocks * taps))
    primary[: len(near)], reference[: len(far)] = scale * near, scale * far
    reference = np.concatenate([np.zeros(taps), reference])
    frames = [reference[b * taps : (b + 2) * taps] for b in range(num_blocks)]
    powers = [np.abs(np.fft.fft(frame)) ** 2 for frame in frames]
    smoothed = np.mean(powers, axis=0)
    least = regularization * np.mean([np.abs(np.fft.rfft(frame)) ** 2 for frame in frames])
    weights, cleaned = np.zeros(taps), []
    for b, frame in enumerate(frames):
        # x[n] of the block's samples, (taps, taps): plain linear convolution
        delayed = np.array([frame[taps + i - np.arange(taps)] for i in range(taps)])
        error = primary[b * taps : (b + 1) * taps] - delayed @ weights
        smoothed = smoothing * smoothed + (1 - smoothing) * powers[b]
        correlation = np.fft.fft(frame).conj() * np.fft.fft(np.concatenate([0 * error, error]))
        direction = np.fft.ifft(correlation / np.maximum(smoothed + least, 1e-12)).real[:taps]
        added = delayed @ direction
        best = (error @ added) / max(added @ added, 1e-24)
        weights = weights + step_size * min(max(best, 0.0), 1.0) * direction
        cleaned.append(error)
    return np.concatenate(cleaned)[: len(near)] / scale


@pytest.mark.parametrize(
    ("taps", "step_size", "smoothing", "regularization", "num_samples"),
    [(1, 0.5, 0.9, 1e-3, 300), (16, 0.2, 0.9, 1e-3, 3_000), (100, 1.0, 0.0, 0.1, 2_950)],
)
def test_block_nlms_equals_a_loop_over_blocks(
    taps, step_size, smoothing, regularization, num_samples, loud
):
    near, far = (channel[:, :num_samples] for channel in loud)
    front_end = FrequencyDomainNlms(
        num_taps=taps,
        step_size=step_size,
        power_smoothing=smoothing,
        regularization=regularization,
    )
    cleaned = front_end(near, far, full(near))
    for i in range(len(near)):
        expected = frequency_domain_by_hand(
            *(near[i].numpy(), far[i].numpy(), taps, step_size, smoothing, regularization)
        )
        np.testing.assert_allclose(cleaned[i].numpy(), expected, rtol=0, atol=1e-10)


def rls_by_hand(near, far, taps, forgetting, regularization):
    """Filter one bin frame by frame; return what is kept, and the last filter."""
    delta = regularization * np.mean(np.abs(far) ** 2) + 1e-12
    inverse, weights, kept = np.eye(taps) / delta, np.zeros(taps, complex), []
    padded = np.concatenate([np.zeros(taps - 1), far])
    for t, c in enumerate(near):
        u = padded[t : t + taps][::-1]
        error = c - np.vdot(weights, u)
        kept.append(error)
        gain = inverse @ u / (forgetting + np.vdot(u, inverse @ u).real)
        weights = weights + gain * error.conjugate()
        inverse = (inverse - np.outer(gain, u.conj() @ inverse)) / forgetting
        inverse = inverse * min(1.0, 1 / (delta * np.trace(inverse).real / taps))
    return np.array(kept), weights


def spectra(rng, num_frames=80, bins=5):
    """Return near and far spectra, (bins, num_frames) complex."""
    parts = rng.standard_normal((4, bins, num_frames))
    near, far = parts[0] + 1j * parts[1], parts[2] + 1j * parts[3]
    return near + (0.8 - 0.3j) * far + 0.4j * np.roll(far, 1, axis=1), far


@pytest.mark.parametrize("silent_from", [80, 20])
@pytest.mark.parametrize(
    ("taps", "forgetting", "regularization"), [(1, 1.0, 0.1), (2, 0.99, 0.1), (4, 0.9, 3.0)]
)
def test_rls_equals_a_loop_over_frames(taps, forgetting, regularization, silent_from, rng):
    near, far = spectra(rng)
    far[:, silent_from:] = 0.0
    front_end = Rls(num_taps=taps, forgetting=forgetting, regularization=regularization)
    removed = front_end.removed(torch.from_numpy(near)[None], torch.from_numpy(far)[None])[0]
    for f in range(len(near)):
        kept, _ = rls_by_hand(near[f], far[f], taps, forgetting, regularization)
        np.testing.assert_allclose(near[f] - removed[f].numpy(), kept, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("taps", "forgetting"), [(1, 1.0), (3, 1.0), (3, 0.97)])
def test_the_recursion_of_rls_is_weighted_least_squares(taps, forgetting, rng):
    near, far = spectra(rng, bins=1)
    _, recursive = rls_by_hand(near[0], far[0], taps, forgetting, 0.1)
    padded = np.concatenate([np.zeros(taps - 1), far[0]])
    rows = np.array([padded[t : t + taps][::-1] for t in range(80)])
    age = forgetting ** np.arange(79, -1, -1.0)
    start = forgetting**80 * 0.1 * np.mean(np.abs(far[0]) ** 2)
    matrix = np.einsum("t,ti,tj->ij", age, rows, rows.conj()) + start * np.eye(taps)
    direct = np.linalg.solve(matrix, np.einsum("t,ti,t->i", age, rows, near[0].conj()))
    np.testing.assert_allclose(recursive, direct, rtol=1e-9)


def test_rls_that_forgets_nothing_comes_to_the_path_of_complex_least_squares(rng):
    noise = 0.2 * rng.standard_normal(48_000)
    near, far = (torch.from_numpy(x)[None] for x in (0.6 * np.roll(noise, 3), noise))
    stft = {"n_fft": 512, "hop_length": 128}
    recursive = Rls(forgetting=1.0, regularization=1e-3, **stft)(near, far, full(near))
    direct = ComplexLeastSquares(num_taps=2, **stft)(near, far, full(near))
    late = slice(32_000, 47_000)
    torch.testing.assert_close(recursive[:, late], direct[:, late], rtol=0, atol=0.01)


def test_rls_does_not_grow_without_end_where_far_is_silent_for_minutes(rng):
    near, far = (torch.from_numpy(x).to(torch.complex64)[None] for x in spectra(rng, 1_200))
    far[..., 10:1_000] = 0.0
    kept = near - Rls(forgetting=0.9).removed(near, far)  # 0.9^-990 is 1e45
    assert torch.isfinite(kept).all()
    assert kept[..., 1_050:].norm() < 0.9 * near[..., 1_050:].norm()  # it still adapts


def test_rls_in_float32_stays_that_of_float64_however_fast_it_forgets(rng):
    near, far = (torch.from_numpy(x)[None] for x in spectra(rng, 1_500))
    precise = Rls(forgetting=0.9).removed(near, far)
    single = Rls(forgetting=0.9).removed(near.to(torch.complex64), far.to(torch.complex64))
    torch.testing.assert_close(single.to(precise.dtype), precise, rtol=0, atol=1e-3)


# What holds for each of them


def room(rng, num_samples=24_000, lead=0):
    """Return machine, near and far (1, num_samples): noise reaches near `lead` samples first."""
    machine = 0.05 * np.sin(0.17 * np.arange(num_samples))
    noise = 0.2 * rng.standard_normal(num_samples + 200)
    path = rng.standard_normal(40) * np.exp(-np.arange(40) / 8)
    path /= np.linalg.norm(path)
    arrived = np.convolve(noise, path)[100 + lead : 100 + lead + num_samples]
    return tuple(
        torch.from_numpy(x)[None] for x in (machine, machine + arrived, noise[100:][:num_samples])
    )


def gain_db(front_end, machine, near, far):
    """Return by how much the noise is less in the second half."""
    cleaned = front_end(near, far, full(near))
    late = slice(near.shape[1] // 2, None)
    before, after = ((x - machine)[:, late].square().mean() for x in (near, cleaned))
    return float(10 * torch.log10(before / after))


OPTIONS = {"lms": {"num_taps": 128}, "nlms": {"num_taps": 128}, "block_nlms": {}}


@pytest.mark.parametrize("name", ADAPTIVE)
def test_noise_that_came_along_a_path_is_taken(name, rng):
    assert gain_db(ADAPTIVE[name](**OPTIONS.get(name, {})), *room(rng)) > 8


@pytest.mark.parametrize("name", ["lms", "nlms", "block_nlms"])
def test_a_primary_delay_lets_a_path_be_followed_that_reaches_near_first(name, rng):
    clips = room(rng, lead=60)
    options = OPTIONS.get(name, {})
    without = gain_db(ADAPTIVE[name](**options), *clips)
    assert without < 2
    assert gain_db(ADAPTIVE[name](primary_delay=64, **options), *clips) > without + 6


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_primary_delay_is_near_delayed_by_hand_and_brought_back(name, loud):
    near, far = loud
    later, silence = torch.zeros(2, 2, 37, dtype=torch.float64)
    pair = torch.cat([later, near], dim=1), torch.cat([far, silence], dim=1)
    by_hand = ADAPTIVE[name]()(*pair, full(pair[0]))[:, 37:]
    cleaned = ADAPTIVE[name](primary_delay=37)(near, far, full(near))
    torch.testing.assert_close(cleaned, by_hand, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["lms", "nlms", "block_nlms"])
@pytest.mark.parametrize("sound", ["bursts", "tone", "chirp"])
def test_the_longest_steps_are_stable_whatever_far_does(name, sound, rng):
    n = np.arange(32_000)
    far = {
        "bursts": rng.standard_normal(32_000) * np.where(n % 4_000 < 100, 1.0, 1e-3),
        "tone": np.sin(0.3 * n) + 1e-3 * rng.standard_normal(32_000),
        "chirp": np.sin(1e-5 * n**2),
    }[sound]
    near = np.convolve(far, [0.5, -0.2, 0.1])[:32_000]
    step_size = 1.0 if name == "block_nlms" else 1.99
    channels = (torch.from_numpy(x).float()[None] for x in (near, far))
    cleaned = ADAPTIVE[name](step_size=step_size, num_taps=128)(*channels, torch.tensor([32_000]))
    assert np.linalg.norm(cleaned[0].numpy()) < 0.7 * np.linalg.norm(near)
