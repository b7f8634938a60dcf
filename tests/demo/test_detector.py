"""Verdicts, enrolments and comparisons of the demo are those of the project's other doors."""

import json
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from demo.actions import Actions
from demo.comparison import ComparisonError, compare
from demo.detector import Detector, windows_of
from demo.enrolment import EnrolmentError, enroll
from demo.recordings import Recording, read_recording
from demo.shelf import Shelf
from demo.sounds import FactorySounds
from modeling import AnomalousSoundDetectionPipeline, ReferenceBank

CHECKPOINT = Path(__file__).resolve().parents[2] / "checkpoints" / "quickstart"


@pytest.fixture
def actions(detector: Detector, sounds: FactorySounds, tmp_path: Path) -> Actions:
    return Actions(detector, sounds, Shelf(tmp_path / "shelf"))


def test_what_ships_is_small_knows_its_seed_and_names_no_path() -> None:
    files = list(CHECKPOINT.iterdir())
    assert sum(path.stat().st_size for path in files) <= 5_000_000
    assert json.loads((CHECKPOINT / "metrics.json").read_text())["seed"] == 0
    assert json.loads((CHECKPOINT / "factory.json").read_text())["arguments"]["seed"] == 0
    texts = [path.read_text() for path in files if path.suffix != ".safetensors"]
    assert not any(f"{root}/" in text for text in texts for root in ("/home", "/root", "/work"))


def test_a_verdict_is_the_pipelines(detector: Detector, sounds: FactorySounds) -> None:
    example = sounds.examples()[1]
    verdict, sound = detector.judge(read_recording(example.path), example.machine)
    pipe = AnomalousSoundDetectionPipeline(
        detector.model, feature_extractor=detector.feature_extractor
    )
    pipe.reference_bank = detector.bank
    result = pipe(str(example.path), machine=example.machine)
    assert verdict.anomaly_score == pytest.approx(result["anomaly_score"], rel=1e-5)
    assert verdict.p_value == result["p_value"]
    assert list(verdict.nearest_references) == result["nearest_references"]
    cleaned = detector.cleaned(sound, verdict.machine)
    assert cleaned is not None
    assert np.abs(cleaned - sound.near).max() > 1e-3
    assert detector.cleaned(Recording("", sound.near, None), verdict.machine) is None


def test_a_long_recording_is_judged_by_its_median_window_and_shows_its_oddest(
    detector: Detector, sounds: FactorySounds
) -> None:
    clips = [read_recording(example.path) for example in sounds.examples()[:3]]
    near = np.concatenate([clip.near for clip in clips] * 2)
    far = np.concatenate([clip.far for clip in clips] * 2)
    long = Recording("long.wav", near, far)
    verdict, shown = detector.judge(long, "fanSim")
    scores = [detector.judge(part, "fanSim")[0].anomaly_score for _, part in windows_of(long)]
    np.testing.assert_allclose([w.anomaly_score for w in verdict.windows], scores, rtol=1e-5)
    assert verdict.anomaly_score == sorted(scores)[len(scores) // 2]
    assert verdict.shown == int(np.argmax(scores))
    start = int(verdict.windows[verdict.shown].start_seconds * 16_000)
    np.testing.assert_array_equal(shown.near, near[start : start + 160_000])


def test_the_map_adds_up_to_the_score_and_is_drawn_after_the_verdict(
    actions: Actions, sounds: FactorySounds
) -> None:
    example = sounds.examples()[-1]
    verdict, sound = actions.judge(example.machine, str(example.path), None, {})
    drawn = actions.detector.anomaly_map(sound, verdict.machine)
    assert drawn["neutral"] == "profile"
    assert np.sum(drawn["values"]) == pytest.approx(verdict.anomaly_score, rel=1e-3)
    first, second, third = actions.listen(example.machine, str(example.path), None, {})
    assert "nf-gauge" in first.verdict
    assert first.sounds == first.references == ""
    assert "<b>Green</b> on cleaned" in second.sounds
    assert second.sounds.count("tinted where") == 1  # for who cannot see it
    assert "nf-references" in third.references


def test_no_more_recordings_are_judged_at_once_than_there_are_workers(
    detector: Detector, sounds: FactorySounds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of twelve at once get their own verdict, while none waits for another's pictures."""
    actions = Actions(detector, sounds, Shelf(tmp_path / "shelf"), workers=2)
    examples, judge, at_once, most = sounds.examples()[:3], detector.judge, [], []

    def counted(*args: Any) -> Any:
        at_once.append(None)
        most.append(len(at_once))
        try:
            return judge(*args)
        finally:
            at_once.pop()

    monkeypatch.setattr(detector, "judge", counted)

    def score(number: int) -> float:
        example = examples[number % 3]
        return actions.judge(example.machine, str(example.path), None, {})[0].anomaly_score

    with ThreadPoolExecutor(12) as pool, actions._drawing:
        found = list(pool.map(score, range(12)))
    monkeypatch.undo()
    assert max(most) == 2
    np.testing.assert_allclose(found, [score(number) for number in range(12)], rtol=1e-5)


def test_references_that_are_played_are_those_the_bank_was_made_of(
    detector: Detector, sounds: FactorySounds
) -> None:
    """A reference lies at distance 0 from itself; half-precision weights move it a little."""
    example = sounds.examples()[0]
    nearest = detector.judge(read_recording(example.path), example.machine)[0].nearest_references
    name = nearest[0]["file_name"]
    again, _ = detector.judge(read_recording(sounds.find(example.machine, name)), example.machine)
    assert again.nearest_references[0]["file_name"] == name
    assert again.nearest_references[0]["distance"] < 0.01 * nearest[0]["distance"] + 1e-3


def test_an_enrolled_machine_is_calibrated_by_sound_from_elsewhere_in_time(
    detector: Detector, hum: Callable[..., np.ndarray]
) -> None:
    near = hum(100)
    enrolment = enroll(detector, "my  pump", [Recording("monday.wav", near, None)])
    assert enrolment.machine == "local/my pump/00"
    assert enrolment.num_references == 10
    inputs = detector.feature_extractor(
        list(near.reshape(10, -1)), [None] * 10, sampling_rate=16_000, return_tensors="pt"
    )
    with torch.no_grad():
        embedding = detector.model(**inputs.to(detector.device)).embedding.cpu()
    x = torch.nn.functional.normalize(embedding.double().flatten(1), dim=1)
    scores = []
    for i in range(10):
        others = [j for j in range(10) if j // 2 != i // 2]  # five stretches of two windows
        scores.append(min(1 - float(x[i] @ x[j]) for j in others))
    found = enrolment.bank.calibration_scores(enrolment.machine)
    np.testing.assert_allclose(found, sorted(scores), atol=1e-5)
    assert enrolment.threshold == pytest.approx(np.quantile(scores, 0.9), abs=1e-5)
    assert enrolment.bank.machines == [enrolment.machine]
    assert enrolment.machine not in detector.bank.machines
    fault, _ = detector.judge(
        Recording("fault.wav", hum(10, hertz=410.0), None), enrolment.machine, enrolment.bank
    )
    normal, _ = detector.judge(
        Recording("normal.wav", hum(10, seed=9), None), enrolment.machine, enrolment.bank
    )
    assert fault.anomalous
    assert fault.anomaly_score > 3 * normal.anomaly_score


def test_too_little_sound_is_refused_and_little_or_varied_sound_is_told(
    detector: Detector, hum: Callable[..., np.ndarray]
) -> None:
    with pytest.raises(EnrolmentError, match="59 s of sound"):
        enroll(detector, "pump", [Recording("short.wav", hum(59), None)])
    steady = enroll(detector, "pump", [Recording("steady.wav", hum(80), None, ("Resampled.",))])
    assert [caution.split(":")[0] for caution in steady.cautions] == [
        "Too little",
        "All of it is one recording. Another day's background may look like a fault",
        "Resampled.",
    ]
    speeds = (100.0, 170.0, 260.0, 390.0, 610.0)
    days = [Recording(f"{hertz}.wav", hum(40, hertz=hertz), None) for hertz in speeds]
    varied = enroll(detector, "pump", days)
    assert varied.cautions
    assert all(caution.startswith("Too varied: 4 of 4 windows") for caution in varied.cautions)


def test_no_more_recordings_are_read_than_may_be_used(
    detector: Detector, hum: Callable[..., np.ndarray]
) -> None:
    read = []

    def recordings() -> Iterator[Recording]:
        for number in range(20):
            read.append(number)
            yield Recording(f"{number}.wav", np.zeros(300 * 16_000, dtype=np.float32), None)

    with pytest.raises(EnrolmentError, match="20 minutes of sound or more, at most 15"):
        enroll(detector, "pump", recordings())
    assert len(read) == 4


def test_recordings_with_and_without_far_do_not_mix(
    detector: Detector, hum: Callable[..., np.ndarray]
) -> None:
    near = hum(40)
    with pytest.raises(ValueError, match="b has no far microphone, but others have"):
        enroll(detector, "pump", [Recording("a", near, near), Recording("b", near, None)])


@pytest.mark.parametrize("name", ["", "  ", "a/b", "x" * 41, "bell\x07", ".."])
def test_a_machine_cannot_have_such_a_name(detector: Detector, name: str) -> None:
    with pytest.raises(EnrolmentError, match="machine's name has 1 to 40"):
        enroll(detector, name, [])


def test_a_downloaded_bank_is_the_enrolled_one(
    actions: Actions, hum: Callable[..., np.ndarray], tmp_path: Path
) -> None:
    import soundfile

    soundfile.write(tmp_path / "normal.wav", hum(70), 16_000)
    enrolment, session, archive = actions.enroll("pump", [str(tmp_path / "normal.wav")], {})
    assert list(session) == ["local/pump/00"]
    with zipfile.ZipFile(archive) as zipped:
        zipped.extractall(tmp_path / "bank")
    bank = ReferenceBank.from_pretrained(tmp_path / "bank")
    bank.check_encoder(actions.detector.model)
    assert bank.threshold("pump") == enrolment.threshold
    assert actions.detector.bank.machines == [
        "2026/fanSim/00",
        "2026/gearboxSim/00",
        "2026/pumpSim/00",
    ]


def test_a_session_has_so_many_machines_and_no_more(actions: Actions, detector: Detector) -> None:
    """The next one is refused before its sound is read; one of the same name takes its place."""
    full = {f"local/{number}/00": detector.bank for number in range(5)}
    with pytest.raises(EnrolmentError, match="has 5 machines of its own already"):
        actions.enroll("pump", ["/nowhere.wav"], full)
    with pytest.raises(ValueError, match="not a sound"):
        actions.enroll("4", ["/nowhere.wav"], full)


def test_a_zip_is_scored_as_its_clips_are_one_by_one(
    detector: Detector, sounds: FactorySounds, clips_zip: Path, tmp_path: Path
) -> None:
    comparison = compare(detector, [clips_zip], tmp_path)
    table = comparison.table
    assert len(table) == 9
    for example in sounds.examples()[::4]:
        row = (table.machines == example.machine) & (table.file_names == example.path.name)
        alone, _ = detector.judge(read_recording(example.path), example.machine)
        assert table.anomaly_scores[row].item() == pytest.approx(alone.anomaly_score, rel=1e-3)
        assert table.p_values[row].item() == alone.p_value
    assert set(comparison.plots) == set(detector.bank.machines)
    assert comparison.metrics["official_score"] is None  # there are no target clips
    assert "target" in comparison.metrics["reason"]
    assert [path.name for path in tmp_path.iterdir()] == ["scores.csv"]


@pytest.mark.parametrize(
    ("name", "words"),
    [("bomb", "would unpack to"), ("outside", "is not a path below"), ("stranger", "crane")],
)
def test_a_harmful_or_foreign_zip_is_refused_and_leaves_nothing(
    detector: Detector, bad_files: dict[str, Path], name: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ComparisonError, match=words):
        compare(detector, [bad_files[name]], tmp_path / "inner")
    assert list(tmp_path.rglob("*.wav")) == []


def test_loose_clips_are_of_the_machine_that_is_chosen(
    detector: Detector, sounds: FactorySounds, bad_files: dict[str, Path], tmp_path: Path
) -> None:
    fans = [example.path for example in sounds.examples() if "fanSim" in example.machine]
    table = compare(detector, fans, tmp_path, machine="2026/fanSim/00").table
    assert set(table.machines) == {"2026/fanSim/00"}
    with pytest.raises(ComparisonError, match="official names"):
        compare(detector, [bad_files["near"]], tmp_path, machine="2026/fanSim/00")
    with pytest.raises(ComparisonError, match=r"'crane'\. This page compares clips of 20"):
        compare(detector, fans, tmp_path, machine="crane")


def test_files_that_are_no_set_of_clips_are_refused_for_what_they_are(
    detector: Detector, sounds: FactorySounds, clips_zip: Path, tmp_path: Path
) -> None:
    clip = sounds.examples()[0].path
    broken = tmp_path / "broken.zip"
    broken.write_bytes(clips_zip.read_bytes()[:300])
    for files, words in (
        ([], "nothing to compare yet"),
        ([broken], "This zip cannot be taken"),
        ([clips_zip, clip], "one zip alone"),
        ([clip, clip], "came twice"),
    ):
        with pytest.raises(ComparisonError, match=words):
            compare(detector, files, tmp_path / "out", machine="fanSim")


def test_the_shelf_forgets_what_is_too_much_or_old(tmp_path: Path) -> None:
    import os

    shelf = Shelf(tmp_path, max_entries=3)
    urls = [shelf.sound_url(np.zeros(100, dtype=np.float32)) for _ in range(6)]
    assert len(set(urls)) == 6
    assert len(list(tmp_path.iterdir())) == 3
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0))
    shelf.new_folder()
    assert len(list(tmp_path.iterdir())) == 1
