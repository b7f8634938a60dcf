"""Recordings that cannot be used are named before training, and nothing is half-written."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

import train
from assembly.scorers import load_scorer
from modeling import ReferenceBank
from tests.scripts import TINY_RECIPE, run_script

RATE = 16_000
OLD_RUN = Path(__file__).parent / "fixtures" / "run_format_1"


@pytest.fixture
def data(factory_dir: Path, tmp_path: Path) -> Path:
    """A copy of the simulated factory to spoil."""
    folder = tmp_path / "data"
    shutil.copytree(factory_dir, folder)
    return folder


def first_clip(data: Path) -> Path:
    return sorted(data.rglob("train/*.wav"))[0]


def rewrite(path: Path, samples: np.ndarray, rate: int = RATE, subtype: str = "PCM_16") -> None:
    soundfile.write(path, samples, rate, subtype=subtype)


def empty(data: Path) -> None:
    shutil.rmtree(data)
    data.mkdir()


def remove(data: Path) -> None:
    shutil.rmtree(data)


def not_a_wav(data: Path) -> None:
    first_clip(data).write_text("this is no sound")


def truncated(data: Path) -> None:
    clip = first_clip(data)
    clip.write_bytes(clip.read_bytes()[:20_000])


def zero_length(data: Path) -> None:
    rewrite(first_clip(data), np.zeros((0, 2)))


def other_rate(data: Path) -> None:
    rewrite(first_clip(data), np.random.default_rng(0).normal(0, 0.1, (44_100, 2)), 44_100)


def one_channel(data: Path) -> None:
    rewrite(first_clip(data), np.random.default_rng(0).normal(0, 0.1, RATE))


def not_a_number(data: Path) -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, (RATE, 2))
    samples[100, 0] = np.nan
    rewrite(first_clip(data), samples, subtype="FLOAT")


def too_short(data: Path) -> None:
    rewrite(first_clip(data), np.random.default_rng(0).normal(0, 0.1, (2_799, 2)))


def single_reference(data: Path) -> None:
    for clip in sorted(first_clip(data).parent.glob("*.wav"))[1:]:
        clip.unlink()


def train_on(data: Path, run: Path, monkeypatch: pytest.MonkeyPatch, *extra: object) -> None:
    arguments = ["--data_dir", data, "--output_dir", run, *TINY_RECIPE, "--max_steps", 1]
    run_script(train, [*arguments, *extra], monkeypatch)


@pytest.mark.parametrize(
    ("spoil", "names_the_clip", "message"),
    [
        (remove, False, "data"),
        (empty, False, "data"),
        (not_a_wav, True, "not"),
        (truncated, True, "frames|samples|truncated|promises"),
        (zero_length, True, "no samples|empty|zero|0 samples"),
        (other_rate, True, r"44100 Hz.*16000 Hz.*resample=True"),
        (one_channel, True, r"1 channel.*2"),
        (not_a_number, True, "NaN|finite"),
        (too_short, True, "2799|2800"),
        (single_reference, False, "1 training clip, fewer than the 2"),
    ],
)
def test_a_clip_that_cannot_be_used_is_named_before_anything_is_written(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path], None],
    names_the_clip: bool,
    message: str,
) -> None:
    clip = first_clip(data).name
    spoil(data)
    with pytest.raises((ValueError, OSError), match=message) as raised:
        train_on(data, tmp_path / "run", monkeypatch)
    if names_the_clip:
        assert clip in str(raised.value)
    assert not (tmp_path / "run" / "run.json").exists()
    assert not list(tmp_path.glob("run/.partial_*"))


def test_damaged_weights_are_said_to_be_damaged(tmp_path: Path) -> None:
    shutil.copytree(OLD_RUN, tmp_path / "run")
    weights = tmp_path / "run" / "model.safetensors"
    whole = weights.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"{" + whole):
        weights.write_bytes(content)
        with pytest.raises(ValueError, match=r"The weights of .* are damaged") as told:
            load_scorer(tmp_path / "run")
        assert "\n" not in str(told.value)


def test_recordings_of_another_year_are_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for year, message in ((2020, "2020"), (2023, "2 channels"), (2019, "2019")):
        with pytest.raises(ValueError, match=message):
            train_on(data, tmp_path / "run", monkeypatch, "--year", year)


def test_another_rate_is_resampled_when_asked(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_rate(data)
    train_on(data, tmp_path / "run", monkeypatch, "--resample")
    assert len(ReferenceBank.from_pretrained(tmp_path / "run").machines) == 2


def test_a_silent_clip_is_legal_and_named_in_a_warning(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    clip = first_clip(data)
    rewrite(clip, np.zeros((RATE, 2)))
    train_on(data, tmp_path / "run", monkeypatch)
    assert any(clip.name in record.getMessage() for record in caplog.records)
