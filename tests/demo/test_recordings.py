"""What strangers upload is refused in words, before it costs memory, or read as it is."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from demo.recordings import MAX_SECONDS, RecordingError, read_recording, window_starts

RATE = 16_000
NOISE = (0.1 * np.random.default_rng(0).standard_normal((2 * RATE, 2))).astype(np.float32)


def test_the_first_channel_is_near_and_the_second_far(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "pair.wav", NOISE, RATE, "FLOAT")
    pair = read_recording(tmp_path / "pair.wav")
    np.testing.assert_array_equal(pair.near, NOISE[:, 0])
    np.testing.assert_array_equal(pair.far, NOISE[:, 1])
    for number, name in enumerate(("near", "far")):
        soundfile.write(tmp_path / f"{name}.wav", NOISE[:, number], RATE, "FLOAT")
    apart = read_recording(tmp_path / "near.wav", tmp_path / "far.wav")
    np.testing.assert_array_equal(apart.far, pair.far)
    assert read_recording(tmp_path / "near.wav").far is None


def test_a_higher_rate_keeps_the_sound_and_says_so(tmp_path: Path) -> None:
    t = np.arange(3 * 48_000) / 48_000
    soundfile.write(tmp_path / "high.wav", 0.3 * np.sin(2 * np.pi * 1000 * t), 48_000, "FLOAT")
    high = read_recording(tmp_path / "high.wav")
    expected = 0.3 * np.sin(2 * np.pi * 1000 * np.arange(3 * RATE) / RATE)
    np.testing.assert_allclose(high.near[500:-500], expected[500:-500], atol=2e-3)
    assert "48000" in high.notes[0]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("text", "not a sound"),
        ("empty", "not a sound"),
        ("channels", "8 channels"),
        ("rate", "8000 Hz"),
        ("silent", "silent"),
        ("long", "180 minutes"),
        ("bomb", "not a sound"),
    ],
)
def test_what_cannot_be_used_is_refused_in_words(
    bad_files: dict[str, Path], name: str, words: str
) -> None:
    with pytest.raises(RecordingError, match=words):
        read_recording(bad_files[name])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: x * 32768, "whole numbers were written as a float file"),
        (lambda x: x * 1e30, "expected -1 to 1"),
        (lambda x: 0 * x + 0.3, "is silent"),
        (lambda x: np.where(x == x[9], np.nan, x), "no finite numbers"),
        (lambda x: np.where(x == x[9], np.inf, x), "no finite numbers"),
    ],
)
def test_impossible_samples_of_a_float_file_are_refused(
    change: Callable[[np.ndarray], np.ndarray], words: str, tmp_path: Path
) -> None:
    soundfile.write(tmp_path / "float.wav", change(NOISE), RATE, "FLOAT")
    with pytest.raises(RecordingError, match=words):
        read_recording(tmp_path / "float.wav")


def test_near_and_far_of_different_lengths_are_refused(bad_files: dict[str, Path]) -> None:
    with pytest.raises(RecordingError, match=r"Near lasts 3\.00 s, but far 1\.00 s"):
        read_recording(bad_files["near"], bad_files["short_far"])


def test_no_more_is_decoded_than_is_allowed_whatever_the_header_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soundfile.write(tmp_path / "near.wav", np.tile(NOISE[:, 0], 4), RATE)
    monkeypatch.setattr("demo.recordings.MAX_SECONDS", 5.0)
    monkeypatch.setattr("demo.recordings._check_header", lambda file, name: None)
    assert read_recording(tmp_path / "near.wav").seconds == 5.0


def test_the_name_of_a_file_decides_nothing(tmp_path: Path) -> None:
    """soundfile takes .raw for headerless samples when it is given a path."""
    soundfile.write(tmp_path / "near.wav", NOISE, RATE)
    raw = (tmp_path / "near.wav").rename(tmp_path / "near.raw")
    assert read_recording(raw).seconds == 2.0


@pytest.mark.parametrize("seconds", [1, 9.9, 14.9, 15.1, 20, 61.3, MAX_SECONDS])
def test_windows_cover_a_recording_and_have_one_length(seconds: float) -> None:
    window, num_samples = 10 * RATE, int(seconds * RATE)
    starts = window_starts(num_samples, window)
    if len(starts) == 1:
        assert num_samples <= 1.5 * window
        return
    covered = np.zeros(num_samples, dtype=bool)
    for start in starts:
        assert start + window <= num_samples
        covered[start : start + window] = True
    assert covered.all()
    assert len(set(starts)) == len(starts) == -(-num_samples // window)
