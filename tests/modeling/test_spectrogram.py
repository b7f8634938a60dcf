import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from modeling.spectrogram import KaldiLogMel, LibrosaLogMel, LogStft, kaldi_mel_filters
from tests.modeling.plain_log_mel import plain_log_mel

FIXTURES = Path(__file__).parents[1] / "fixtures" / "beats"
FLOOR = math.log(1.1920928955078125e-07)
BEATS = {"window": "povey", "scale": 2.0**15}
EAT = {"window": "hanning"}


@pytest.fixture(scope="module")
def io() -> dict[str, Tensor]:
    return load_file(FIXTURES / "io.safetensors")


def normalise(log_mel: Tensor) -> Tensor:
    return (log_mel - 15.41663) / (2 * 6.55582)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_it_equals_the_authors_spectrogram(io: dict[str, Tensor]) -> None:
    computed = normalise(KaldiLogMel(**BEATS)(io["wav"]))
    # The clips hold digital silence next to sound: there, rounding shows in the logarithm.
    torch.testing.assert_close(computed, io["fbank"], rtol=0, atol=1e-3)
    exact = io["fbank_f64"]
    assert (computed[:1] - exact).square().mean().sqrt() < 1e-5


@pytest.mark.filterwarnings("ignore:At least one mel filter has all zero values")  # filter 3
@pytest.mark.parametrize("sampling_rate", [16_000, 8_000])
@pytest.mark.parametrize("options", [BEATS, EAT], ids=["beats", "eat"])
def test_it_equals_the_numpy_implementation_of_transformers(
    options: dict, sampling_rate: int
) -> None:
    time = torch.arange(3 * sampling_rate) / sampling_rate
    clip = noise(len(time)) * time + 0.2 * torch.sin(2 * math.pi * 440 * time) + 0.05
    samples = clip.double().numpy()
    length = sampling_rate // 40
    exponent = 0.85 if options["window"] == "povey" else 1.0
    n_fft = 512 * sampling_rate // 16_000
    num_mel_bins = 128 * sampling_rate // 16_000
    expected = spectrogram(
        samples * options.get("scale", 1.0),
        window_function(length, "hann", periodic=False) ** exponent,
        length,
        sampling_rate // 100,
        fft_length=n_fft,
        power=2.0,
        center=False,
        preemphasis=0.97,
        remove_dc_offset=True,
        mel_filters=mel_filter_bank(
            num_frequency_bins=n_fft // 2 + 1,
            num_mel_filters=num_mel_bins,
            min_frequency=20,
            max_frequency=sampling_rate / 2,
            sampling_rate=sampling_rate,
            norm=None,
            mel_scale="kaldi",
            triangularize_in_mel_space=True,
        ),
        log_mel="log",
        mel_floor=1.192092955078125e-07,
        dtype=np.float64,
    ).T
    module = KaldiLogMel(sampling_rate=sampling_rate, num_mel_bins=num_mel_bins, **options)
    torch.testing.assert_close(
        module(clip[None])[0].double(), torch.from_numpy(expected), rtol=0, atol=1e-3
    )


def test_only_filter_3_sees_no_bin() -> None:
    filters = kaldi_mel_filters(128, 512, 16_000)
    assert np.flatnonzero(~filters.any(axis=0)).tolist() == [3]
    assert not filters[-1].any()  # Kaldi's filters do not reach the last bin
    log_mel = KaldiLogMel(**BEATS)(noise(1, 16_000))
    assert (log_mel[..., 3] == torch.tensor(FLOOR)).all()
    assert (log_mel[..., [2, 4]] > FLOOR + 1).all()


@pytest.mark.parametrize("options", [BEATS, EAT], ids=["beats", "eat"])
def test_what_stands_behind_a_clip_does_not_change_its_frames(options: dict) -> None:
    log_mel = KaldiLogMel(**options)
    clip = noise(1, 9_001)
    padded = torch.cat([clip, torch.full((1, 5_000), math.nan)], dim=1)
    alone = log_mel(clip)
    batch = torch.cat([padded, noise(1, 14_001, seed=1)])
    together = log_mel(batch)[:1, : alone.shape[1]]
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)


def test_a_constant_offset_changes_nothing() -> None:
    clip = noise(1, 8_000)
    # 0.25 moves float32 rounding only.
    moved = KaldiLogMel(**BEATS)(clip + 0.25)
    torch.testing.assert_close(moved, KaldiLogMel(**BEATS)(clip), rtol=0, atol=1e-3)


@pytest.mark.parametrize("offset", [0.0, 0.1, -1 / 3])
def test_a_constant_sound_is_silence(offset: float) -> None:
    log_mel = KaldiLogMel(**BEATS)(torch.full((1, 4_000), offset))
    assert (log_mel == torch.tensor(FLOOR)).all()


def test_twice_the_volume_adds_ln_4() -> None:
    log_mel, clip = KaldiLogMel(**BEATS), noise(1, 8_000)
    heard = [bin_ for bin_ in range(128) if bin_ != 3]
    difference = (log_mel(2 * clip) - log_mel(clip))[..., heard]
    torch.testing.assert_close(difference, torch.full_like(difference, math.log(4)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_it_stays_float32(dtype: torch.dtype) -> None:
    clip = noise(1, 8_000)
    expected = KaldiLogMel(**BEATS)(clip)
    module = KaldiLogMel(**BEATS).to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(module(clip), expected)
    assert module(clip.to(dtype)).dtype == torch.float32


def test_a_module_made_on_the_meta_device_computes_the_same() -> None:
    with torch.device("meta"):
        module = KaldiLogMel(**BEATS)
    clip = noise(1, 8_000)
    assert torch.equal(module(clip), KaldiLogMel(**BEATS)(clip))
    assert not module.state_dict()
    assert not list(module.buffers())


def test_a_gradient_reaches_the_waveform_after_a_pass_in_inference_mode() -> None:
    log_mel, clip = KaldiLogMel(**BEATS), noise(1, 8_000)
    with torch.inference_mode():
        log_mel(clip)
    clip = clip.clone().requires_grad_()
    log_mel(clip).sum().backward()
    assert torch.isfinite(clip.grad).all()
    assert clip.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("num_samples", "frames"), [(399, 0), (400, 1), (559, 1), (560, 2), (160_000, 998)]
)
def test_frames_are_counted_whole(num_samples: int, frames: int) -> None:
    log_mel = KaldiLogMel()
    assert log_mel.num_frames(num_samples) == frames
    if frames:
        assert log_mel(noise(1, num_samples)).shape == (1, frames, 128)
        assert log_mel.num_frames(log_mel.num_samples(frames)) == frames
        assert log_mel.num_frames(log_mel.num_samples(frames) - 1) == frames - 1


def test_a_waveform_shorter_than_a_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="399 samples; one frame at 16000 Hz takes 400"):
        KaldiLogMel()(noise(1, 399))


def test_an_unknown_window_is_refused() -> None:
    with pytest.raises(ValueError, match="'hamming' is not one of"):
        KaldiLogMel(window="hamming")(noise(1, 400))


# --- Log-magnitude ------------------------------------------------------------------------------

FISHER_FIXTURES = FIXTURES.parent / "fisher"
RATES = pytest.mark.parametrize("rate", [16_000, 44_100, 8_000, 1_000])


@pytest.mark.parametrize("rate", [16_000, 1_000])
def test_the_log_magnitude_equals_the_authors(rate: int) -> None:
    io = load_file(FISHER_FIXTURES / "io.safetensors")
    log_magnitude = LogStft()(io[f"wav_{rate}"][None], rate)[0]
    computed = (log_magnitude + 3.017344307886898) / (2 * 2.1531635155379805)
    expected = io[f"spec_{rate}"][:, : computed.shape[1]]  # the authors pad it to a sub-band
    torch.testing.assert_close(computed, expected, rtol=0, atol=1e-3)
    assert (computed - expected).square().mean().sqrt() < 1e-5


@RATES
def test_the_log_magnitude_equals_numpy_in_float64(rate: int) -> None:
    clip = (noise(rate // 4) + 0.3).double().numpy()
    clip -= clip.mean()
    length, hop = 25 * rate // 1000, 10 * rate // 1000
    window = np.hanning(length + 1)[:-1]
    expected = [
        np.log(np.abs(np.fft.rfft(clip[start : start + length] * window)) + 1e-10)
        for start in range(0, len(clip) - length + 1, hop)
    ]
    computed = LogStft()(noise(1, rate // 4) + 0.3, rate)[0]
    torch.testing.assert_close(
        computed.double(), torch.from_numpy(np.array(expected)), rtol=0, atol=2e-3
    )


@pytest.mark.parametrize("rate", [8_000, 16_000, 48_000])
def test_a_tone_is_in_the_same_bin_at_every_rate(rate: int) -> None:
    tone = torch.sin(2 * math.pi * 1_200 * torch.arange(rate) / rate)
    assert (LogStft()(tone[None], rate)[0].argmax(dim=1) == 1_200 // 40).all()
    assert LogStft().num_bins(rate) == rate // 80 + 1


def test_the_mean_is_each_clips_own() -> None:
    log_stft, lengths = LogStft(), [9_001, 14_001]
    clips = [noise(1, length, seed=row) + row for row, length in enumerate(lengths)]
    batch = torch.full((2, 14_001), math.nan)
    for row, clip in enumerate(clips):
        batch[row, : lengths[row]] = clip[0]
    together = log_stft(batch, 16_000, torch.tensor(lengths))
    for row, clip in enumerate(clips):
        alone = log_stft(clip, 16_000)[0]
        torch.testing.assert_close(together[row, : len(alone)], alone, rtol=0, atol=1e-5)
        # An offset moves float32 rounding only.
        moved = log_stft(clip + 0.25, 16_000)[0]
        torch.testing.assert_close(moved, alone, rtol=0, atol=1e-2)
        assert (moved - alone).abs().mean() < 1e-4


@pytest.mark.parametrize("offset", [0.0, 0.1, -1 / 3])
def test_a_constant_sound_is_at_the_floor(offset: float) -> None:
    batch = torch.full((1, 5_000), offset)
    batch[:, 4_001:] = math.nan
    for waveform, lengths in ((batch[:, :4_001], None), (batch, torch.tensor([4_001]))):
        frames = LogStft()(waveform, 16_000, lengths)[:, :20]
        assert (frames == torch.tensor(1e-10).log()).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_log_magnitude_stays_float32(dtype: torch.dtype) -> None:
    clip = noise(1, 8_000)
    expected = LogStft()(clip, 16_000)
    module = LogStft().to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(module(clip, 16_000), expected)
    assert module(clip.to(dtype), 16_000).dtype == torch.float32
    assert not module.state_dict()
    assert not list(module.buffers())


def test_a_gradient_reaches_the_waveform_even_from_silence() -> None:
    clip = noise(1, 8_000)
    clip[:, 2_000:6_000] = 0.0
    clip -= clip.mean()
    for waveform in (clip, torch.zeros(1, 8_000)):
        waveform.requires_grad_()
        LogStft()(waveform, 16_000).sum().backward()
        assert torch.isfinite(waveform.grad).all()
    assert clip.grad.abs().sum() > 0


@RATES
def test_frames_of_any_rate_are_counted_whole(rate: int) -> None:
    log_stft = LogStft()
    for frames in (1, 2, 16):
        num_samples = log_stft.num_samples(frames, rate)
        assert log_stft.num_frames(num_samples, rate) == frames
        assert log_stft.num_frames(num_samples - 1, rate) == frames - 1
        shape = log_stft(noise(1, num_samples), rate).shape
        assert shape == (1, frames, log_stft.num_bins(rate))
    with pytest.raises(ValueError, match=f"one frame at {rate} Hz takes {25 * rate // 1000}"):
        log_stft(noise(1, 25 * rate // 1000 - 1), rate)


@pytest.mark.parametrize("rate", [99, 0, -1, 16e3, "16000", True, None])
def test_what_is_no_sampling_rate_is_refused(rate) -> None:
    with pytest.raises(ValueError, match=r"is not a whole number of hertz from 100 on"):
        LogStft()(noise(1, 400), rate)
    assert LogStft().num_bins(np.int64(16_000)) == 201


def test_a_time_average_is_that_of_the_clips_own_frames() -> None:
    log_mel, clips = KaldiLogMel(**BEATS), noise(3, 4_000)
    lengths = torch.tensor([4_000, 1_234, log_mel.frame_length])
    averages = log_mel.time_average(clips, lengths)
    for i, length in enumerate(lengths.tolist()):
        alone = log_mel(clips[i : i + 1, :length]).mean(dim=1)[0]
        torch.testing.assert_close(averages[i], alone)


def test_decibels_equal_a_plain_derivation_at_the_baselines_sizes() -> None:
    rate, n_fft = 16_000, 1024
    samples = (noise(3_000, seed=4) + 0.3 * torch.sin(0.3 * torch.arange(3_000))).double().numpy()
    module = LibrosaLogMel(sampling_rate=rate)
    found = module(torch.from_numpy(samples).float()[None])[0]
    expected = plain_log_mel(samples, bins=128, n_fft=n_fft, hop=512, rate=rate)
    assert found.shape == (1 + 3_000 // 512, 128)
    torch.testing.assert_close(found.double(), torch.from_numpy(expected), rtol=0, atol=1e-3)


def test_decibels_equal_librosa() -> None:
    librosa = pytest.importorskip("librosa", reason="librosa is not installed")
    samples = noise(5_000, seed=5).numpy()
    mel = librosa.feature.melspectrogram(y=samples, sr=16_000, n_fft=1024, hop_length=512)
    expected = 10 * np.log10(np.maximum(mel, np.finfo(np.float64).eps)).T
    found = LibrosaLogMel()(torch.from_numpy(samples)[None])[0].numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)


def test_decibels_of_silence_and_of_padding_are_those_of_the_clip_alone() -> None:
    module = LibrosaLogMel()
    assert module(torch.zeros(1, 1_024)).unique().tolist() == pytest.approx([-156.5356], abs=1e-3)
    clip = noise(1, 2_600, seed=6)
    own = module(clip)
    assert own.shape[1] == module.num_frames(torch.tensor([2_600])).item() == 6
    longer = module(torch.cat([clip, torch.zeros(1, 5_000)], dim=1))
    torch.testing.assert_close(longer[:, :6], own, rtol=0, atol=1e-4)
    assert module.num_samples(6) == 2_560
