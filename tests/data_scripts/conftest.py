"""Recordings in the challenge's layout, written for each test."""

from pathlib import Path

import numpy as np
import pytest
import soundfile


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def write_clip(tmp_path, rng):
    """Write a wav below tmp_path/DATA and return its samples, (num_samples, channels) int16."""

    def write(relative, samples=None, *, sampling_rate=16_000, subtype="PCM_16", num_channels=2):
        path = tmp_path / "DATA" / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        if samples is None:
            noise = rng.integers(-32768, 32768, size=(400, num_channels))
            samples = noise.astype(np.int16)
        soundfile.write(path, samples, sampling_rate, subtype=subtype, format="WAV")
        return samples

    return write


@pytest.fixture
def data_dir(tmp_path) -> Path:
    return tmp_path / "DATA"


@pytest.fixture
def dev_set(write_clip):
    """Two machines of 2026 below dev_data/raw: six training and four test clips."""
    names = [
        f"{machine}/{split}/section_00_{rest}"
        for machine, attributes in (("fan", "spd_1"), ("ToyCar", "noAttribute"))
        for split, rest in (
            ("train", f"source_train_normal_0000_{attributes}.wav"),
            ("train", f"source_train_normal_0001_{attributes}.wav"),
            ("train", f"target_train_normal_0000_{attributes}.wav"),
            ("test", f"source_test_normal_0000_{attributes}.wav"),
            ("test", f"target_test_anomaly_0000_{attributes}.wav"),
        )
    ]
    return {
        Path(name).parts[0] + "/" + Path(name).name: write_clip(f"dev_data/raw/{name}")
        for name in names
    }
