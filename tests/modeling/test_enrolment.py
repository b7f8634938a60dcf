"""A machine of one's own, from minutes of its normal sound, without training."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from modeling import AsdFeatureExtractor, AsdForProxyClassification, AsdModel, ReferenceBank
from modeling import pipeline_asd as pipeline_module
from modeling.enrolment import Recording, cut_windows, stretches
from modeling.pipeline_asd import AnomalousSoundDetectionPipeline

OLD_RUN = Path(__file__).parents[1] / "fixtures" / "run_format_1"
RATE, WINDOW = 16_000, 4_000  # a window of 0.25 s, so that a minute is short
LOCAL = "local/my_pump/00"


def steady(num_windows: int, *, seed: int = 0) -> np.ndarray:
    """Return near and far, (2, num_windows * WINDOW): a hum that stays, and noise."""
    rng = np.random.default_rng(seed)
    num_samples = num_windows * WINDOW
    hum = 0.2 * np.sin(2 * np.pi * 180 * np.arange(num_samples) / RATE)
    noise = 0.05 * rng.standard_normal((2, num_samples))
    return np.stack([hum + noise[0], 0.2 * hum + noise[1]]).astype(np.float32)


def broken(num_windows: int) -> np.ndarray:
    """Return the same of a machine that rattles, (2, num_windows * WINDOW)."""
    rattle = np.zeros((2, num_windows * WINDOW), dtype=np.float32)
    rattle[:, ::400] = 0.9
    return rattle


def load(folder: Path) -> AnomalousSoundDetectionPipeline:
    return AnomalousSoundDetectionPipeline(
        AsdModel.from_pretrained(folder),
        feature_extractor=AsdFeatureExtractor.from_pretrained(folder),
        device="cpu",
    )


@pytest.fixture
def pipe() -> AnomalousSoundDetectionPipeline:
    return load(OLD_RUN)


@pytest.fixture
def enroll(pipe: AnomalousSoundDetectionPipeline) -> Callable:
    """Return `pipe.enroll` for short windows of waveforms."""

    def enroll(near: np.ndarray | list, far: np.ndarray | list | None = None, **options):
        given = {"far": far, "sampling_rate": RATE, "window_seconds": WINDOW / RATE} | options
        return pipe.enroll("my_pump", near, **given)

    return enroll


@pytest.mark.parametrize("lengths", [[100], [199], [200, 30], [1_000, 250, 99]])
def test_windows_are_equal_and_leave_nothing_out(lengths: list[int]) -> None:
    rng = np.random.default_rng(0)
    recordings = [
        Recording(f"{i}.wav", *rng.standard_normal((2, length))) for i, length in enumerate(lengths)
    ]
    windows = cut_windows(recordings, sampling_rate=100, seconds=1.0)
    for i, recording in enumerate(recordings):
        own = [window for window in windows if window.name.startswith(f"{i}.wav")]
        sizes = {len(window.near) for window in own}
        assert len(sizes) == 1
        assert min(100, lengths[i]) <= sizes.pop() < 200
        for channel in ("near", "far"):
            joined = np.concatenate([getattr(window, channel) for window in own])
            whole = getattr(recording, channel)
            assert len(whole) - len(joined) < len(own)  # less than a sample a window
            assert np.array_equal(joined, whole[: len(joined)])
    assert len({window.name for window in windows}) == len(windows)


def test_what_cannot_be_cut_is_named() -> None:
    sound = np.ones(300)
    silent = np.concatenate([sound, np.zeros(200)])
    with pytest.raises(ValueError, match=r"b\.wav is silent from 3\.0 s on"):
        cut_windows([Recording("b.wav", silent, None)], sampling_rate=100, seconds=1.0)
    with pytest.raises(ValueError, match=r"a\.wav has no far microphone, but others have"):
        cut_windows(
            [Recording("a.wav", sound, None), Recording("b.wav", sound, sound)],
            sampling_rate=100,
            seconds=1.0,
        )
    with pytest.raises(ValueError, match="There are no recordings"):
        cut_windows([], sampling_rate=100, seconds=1.0)
    with pytest.raises(ValueError, match="must be positive"):
        cut_windows([Recording("a.wav", sound, None)], sampling_rate=100, seconds=0.0)


@pytest.mark.parametrize("num_windows", [3, 5, 7, 24])
def test_stretches_are_neighbours_and_hold_each_window_once(num_windows: int) -> None:
    held_out = stretches(num_windows)
    assert np.concatenate(held_out).tolist() == list(range(num_windows))
    assert len(held_out) == min(5, num_windows)
    assert max(map(len, held_out)) - min(map(len, held_out)) <= 1


def test_the_threshold_is_that_of_each_fifth_by_the_other_four(pipe, enroll) -> None:
    near, far = steady(25)
    told = enroll(near, far)
    assert (told.machine, told.num_references, told.seconds) == (LOCAL, 25, 6.25)
    embedded = []
    for i in range(25):  # one by one, by the model itself
        inside = slice(i * WINDOW, (i + 1) * WINDOW)
        batch = pipe.feature_extractor(
            near[inside], far[inside], sampling_rate=RATE, return_tensors="pt"
        )
        batch.pop("has_far")
        with torch.no_grad():
            embedded.append(pipe.model(**batch).embedding.numpy())
    embedding, scores = np.concatenate(embedded), []
    for fifth in np.arange(25).reshape(5, 5):
        others = np.setdiff1d(np.arange(25), fifth)
        table = SimpleNamespace(
            embedding=embedding[others],
            file_names=[str(i) for i in others],
            machines=["m"] * 20,
            domains=[None] * 20,
            conditions=["normal"] * 20,
        )
        bank = ReferenceBank(pipe.model.config).fit(table, frozen_encoder=True)
        scores += bank.anomaly_score(torch.from_numpy(embedding[fifth])).tolist()
    assert told.threshold == pytest.approx(np.quantile(scores, 0.9), rel=1e-4)
    assert pipe.reference_bank.rule(LOCAL)["scores"] == "cross_fitted"


def test_a_new_machine_is_told_apart_and_the_others_stay(pipe, enroll, tmp_path: Path) -> None:
    clip = {"near": steady(1, seed=9)[0], "far": steady(1, seed=9)[1], "sampling_rate": RATE}
    before = [pipe(clip, machine=machine) for machine in pipe.reference_bank.machines]
    enroll(*steady(30))
    normal = pipe(clip, machine="my_pump")
    near, far = broken(1)
    strange = pipe(clip | {"near": near, "far": far}, machine="my_pump")
    assert normal["anomalous"] is False
    assert strange["anomalous"] is True
    assert strange["p_value"] == pytest.approx(1 / 31)
    old = [machine for machine in pipe.reference_bank.machines if machine != LOCAL]
    assert [pipe(clip, machine=machine) for machine in old] == before
    pipe.save_pretrained(tmp_path)
    assert load(tmp_path)(clip, machine="my_pump") == normal


def test_the_card_tells_the_thresholds_of_the_machines_enrolled(
    pipe, enroll, tmp_path: Path
) -> None:
    enroll(*steady(12))
    pipe.save_pretrained(tmp_path / "one")
    before, card = ((folder / "README.md").read_text() for folder in (OLD_RUN, tmp_path / "one"))
    old_row = next(row for row in before.splitlines() if row.startswith("| 2026/pumpSim/00 |"))
    row = f"| {LOCAL} | {pipe.reference_bank.threshold(LOCAL):.4f} |"
    assert card == before.replace(old_row, f"{old_row}\n{row}")

    later = load(tmp_path / "one")
    near, far = steady(12, seed=4)
    later.enroll("my|pump", near, far=far, sampling_rate=RATE, window_seconds=WINDOW / RATE)
    later.enroll("my_pump", near, sampling_rate=RATE, window_seconds=WINDOW / RATE)
    later.save_pretrained(tmp_path / "two")
    rows = [
        f"| {name} | {later.reference_bank.threshold(machine):.4f} |"
        for name, machine in ((LOCAL, LOCAL), (r"local/my\|pump/00", "local/my|pump/00"))
    ]
    card = (tmp_path / "two" / "README.md").read_text()
    assert row not in card
    assert sorted(r for r in card.splitlines() if r.startswith("| local/")) == sorted(rows)
    for path in (tmp_path / "two").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path.name  # where it came from
    load(OLD_RUN).save_pretrained(tmp_path / "two")  # a bank without them, where a card lies
    assert (tmp_path / "two" / "README.md").read_text() == before


def test_every_way_to_give_recordings_gives_one_bank(pipe, enroll, tmp_path: Path) -> None:
    near, far = np.round(steady(12) * 32_768) / 32_768  # as a file of 16 bits keeps it
    halves = [slice(0, 6 * WINDOW), slice(6 * WINDOW, None)]
    paths = []
    for number, half in enumerate(halves):
        paths.append(tmp_path / f"half_{number}.wav")
        soundfile.write(paths[-1], np.stack([near[half], far[half]], 1), RATE, subtype="PCM_16")
    ways = [
        ([near[half] for half in halves], [far[half] for half in halves]),
        (paths, None),
        ([{"near": str(path), "file_name": f"x/{path.name}"} for path in paths], None),
        ([{"bytes": path.read_bytes()} for path in paths], None),
    ]
    thresholds = [enroll(*way).threshold for way in ways]
    assert thresholds == pytest.approx([thresholds[0]] * len(ways), rel=1e-6)
    names = pipe.reference_bank.calibration(LOCAL).file_names
    assert len(set(names)) == 12
    enroll(paths[0])
    nearest = pipe(paths[0], machine="my_pump")["nearest_references"][0]["file_name"]
    assert nearest.startswith("half_0.wav [")  # no folder of this machine in the bank


def test_too_little_sound_is_said_to_be_too_little(enroll, caplog) -> None:
    caplog.set_level(logging.WARNING)
    told = enroll(*steady(6))
    assert [note.split(":")[0] for note in told.notes] == ["Too little"]
    assert "6 windows of 2 s in all, and no p-value can be below 0.14" in told.notes[0]
    assert told.notes[0] in caplog.text
    with pytest.raises(ValueError, match="The recordings give 2 windows, and three are the least"):
        enroll(*steady(2))


def test_enough_steady_sound_needs_no_note(enroll, monkeypatch) -> None:
    monkeypatch.setattr("modeling.enrolment.FEWEST_SECONDS", 6.0)  # a minute would take its time
    for seed in range(3):
        assert enroll(*steady(25, seed=seed)).notes == []


def test_a_stretch_unlike_the_rest_is_named(enroll, monkeypatch) -> None:
    monkeypatch.setattr("modeling.enrolment.FEWEST_SECONDS", 6.0)
    near, far = steady(25)
    near[20 * WINDOW :], far[20 * WINDOW :] = broken(5)
    [note] = enroll(near, far).notes
    assert note.startswith("Too varied: 5 of 5 windows from recording 1 [5.0-5.2 s] to ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"near": [], "far": None}, "There are no recordings"),
        ({"near": [steady(3)[0]] * 2, "far": [steady(3)[1]]}, "2 recordings came with 1 far"),
        ({"near": steady(3)[0], "far": None, "sampling_rate": 8_000}, "sampled at 8000 Hz"),
        ({"near": ["nowhere.wav"], "far": None}, r"there is no file 'nowhere\.wav'"),
        ({"near": steady(3)[0], "far": None, "front_end_strength": 2.0}, "must lie in"),
    ],
)
def test_bad_recordings_change_nothing(pipe, enroll, options, message) -> None:
    before = pipe.reference_bank.machines
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        enroll(options.pop("near"), options.pop("far"), **options)
    assert pipe.reference_bank.machines == before


def test_a_name_with_a_slash_and_a_model_of_its_own_machines_are_refused(pipe) -> None:
    near, _ = steady(3)
    with pytest.raises(ValueError, match="cannot name a machine"):
        pipe.enroll("2026/fan/00", near, sampling_rate=RATE)
    pipe.model = SimpleNamespace(reads_machines=True)
    with pytest.raises(ValueError, match="no other can be enrolled"):
        pipe.enroll("my_pump", near, sampling_rate=RATE)


def test_the_strength_of_the_front_end_is_the_enrolled_machines_own(pipe, enroll) -> None:
    near, far = steady(10)
    enroll(near, far, front_end_strength=0.0)
    alone = pipe.reference_bank.threshold(LOCAL)
    assert pipe.reference_bank.front_end_strength(LOCAL) == 0.0
    enroll(near)  # without far the front end has nothing to do
    assert pipe.reference_bank.threshold(LOCAL) == pytest.approx(alone, rel=1e-6)
    enroll(near, far)
    assert pipe.reference_bank.threshold(LOCAL) != pytest.approx(alone, rel=1e-2)


def test_saving_a_loaded_pipeline_loses_nothing(tmp_path: Path) -> None:
    run, again = tmp_path / "run", tmp_path / "again"
    shutil.copytree(OLD_RUN, run)
    (run / "adapter").mkdir()
    (run / "adapter" / "adapter_config.json").write_text('{"r": 8}')
    load(run).save_pretrained(again)
    for path in sorted(path for path in run.rglob("*") if path.is_file()):
        copy = again / path.relative_to(run)
        if path.suffix == ".json":
            first, second = (json.loads(file.read_text()) for file in (path, copy))
            if path.name == "config.json":
                first["encoder_config"].pop("dtype", None), second["encoder_config"].pop("dtype")
                first.pop("transformers_version"), second.pop("transformers_version")
            if path.name == "preprocessor_config.json":
                assert second.pop("clip_seconds") is None  # which the old format did not have
            if path.name == "reference_bank.json":
                first.pop("tensors_sha256"), second.pop("tensors_sha256")
                first["extractor_settings"] = {}  # what the old format did not tell
            assert first == second, path.name
        elif path.name != "reference_bank.safetensors":
            assert copy.read_bytes() == path.read_bytes(), path.name
    model = AsdForProxyClassification.from_pretrained(again, output_loading_info=True)[1]
    assert not model["missing_keys"]
    assert {"handler.py", "pipeline_asd.py", "enrolment.py"} <= {p.name for p in again.iterdir()}


def test_a_model_that_changed_keeps_its_own_weights(tmp_path: Path) -> None:
    pipe = load(OLD_RUN)
    _ = pipe.reference_bank
    with torch.no_grad():
        next(pipe.model.parameters()).mul_(2)
    pipe.save_pretrained(tmp_path)
    saved = AsdModel.from_pretrained(tmp_path)
    assert torch.equal(next(saved.parameters()), next(pipe.model.parameters()))


def test_code_of_another_format_version_is_said(caplog, monkeypatch) -> None:
    caplog.set_level(logging.WARNING)
    load(OLD_RUN)
    assert "format version" not in caplog.text
    monkeypatch.setattr(pipeline_module, "FORMAT_VERSION", 7)
    load(OLD_RUN)
    assert "of format version 1, the pipeline's code (modeling.pipeline_asd) of version 7" in (
        caplog.text
    )
