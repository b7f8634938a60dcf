import numpy as np
import pytest
import torch

from modeling.front_ends import FRONT_ENDS, ComplexLeastSquares

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
def test_a_silent_far_channel_returns_near(name, loud):
    near, _ = loud
    cleaned = FRONT_ENDS[name]()(near, torch.zeros_like(near), full(near))
    torch.testing.assert_close(cleaned, near, rtol=0, atol=1e-6)


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
@pytest.mark.parametrize("kind", ["silence", "constant", "far_equals_near", "near_is_silent"])
def test_degenerate_clips_stay_finite(name, kind, loud):
    near, far = loud
    near, far = {
        "silence": (0 * near, 0 * far),
        "constant": (torch.full_like(near, 0.3), torch.full_like(far, -0.2)),
        "far_equals_near": (near, near),
        "near_is_silent": (0 * near, far),
    }[kind]
    near.requires_grad_()
    cleaned = FRONT_ENDS[name]()(near, far, full(near))
    cleaned.square().sum().backward()
    assert torch.isfinite(cleaned).all()
    assert torch.isfinite(near.grad).all()


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


def complex_least_squares_by_hand(near, far, n_fft=1024, hop_length=512):
    """Methods 2.1 in plain float64 numpy, one clip, one frame, one frequency after the other."""
    num_samples = len(near)
    peak = max(np.abs(near).max(), np.abs(far).max())
    scale = 0.9 / peak if peak > 1e-12 else 1.0
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    num_frames = 1 + num_samples // hop_length

    def stft(waveform):
        padded = np.pad(scale * waveform, n_fft // 2, mode="reflect")
        starts = range(0, num_frames * hop_length, hop_length)
        return np.array([np.fft.rfft(window * padded[s : s + n_fft]) for s in starts])

    near_spectrum, far_spectrum = stft(near), stft(far)
    cleaned = np.empty_like(near_spectrum)
    for f in range(n_fft // 2 + 1):
        cross = power = 0.0
        for t in range(num_frames):
            cross += near_spectrum[t, f] * far_spectrum[t, f].conjugate()
            power += abs(far_spectrum[t, f]) ** 2
        cleaned[:, f] = near_spectrum[:, f] - cross / (power + 1e-12) * far_spectrum[:, f]

    total = np.zeros(n_fft + num_frames * hop_length)
    weight = np.zeros_like(total)
    for t in range(num_frames):
        frame = slice(t * hop_length, t * hop_length + n_fft)
        total[frame] += window * np.fft.irfft(cleaned[t], n_fft)
        weight[frame] += window**2
    inside = slice(n_fft // 2, n_fft // 2 + num_samples)
    return total[inside] / weight[inside] / scale


@pytest.mark.parametrize("num_samples", [513, 1_024, 5_001, 8_000, 8_192])
def test_complex_least_squares_equals_a_plain_loop(num_samples, loud):
    near, far = (channel[:, :num_samples].double() for channel in loud)
    cleaned = ComplexLeastSquares()(near, far, full(near))
    for i in range(len(near)):
        expected = complex_least_squares_by_hand(near[i].numpy(), far[i].numpy())
        np.testing.assert_allclose(cleaned[i].numpy(), expected, rtol=0, atol=1e-12)


def test_complex_least_squares_follows_its_options(loud):
    near, far = (channel.double() for channel in loud)
    cleaned = ComplexLeastSquares(n_fft=512, hop_length=128)(near, far, full(near))
    expected = complex_least_squares_by_hand(near[0].numpy(), far[0].numpy(), 512, 128)
    np.testing.assert_allclose(cleaned[0].numpy(), expected, rtol=0, atol=1e-12)


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


def test_far_equal_to_near_leaves_nothing(loud):
    near, _ = loud
    cleaned = ComplexLeastSquares()(near, near, full(near))
    assert cleaned.abs().max() < 1e-5


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
