"""Laws of a factory's sets: evaluation and ground truth, components, real noise, resuming."""

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from benchmarks import factory as benchmark
from data_scripts.clip_names import ClipName
from data_scripts.factory import (
    EVALUATION,
    FactoryArguments,
    PlannedClip,
    Recordings,
    machine_of,
    plan_clips,
    simulate_clip,
    simulate_factory,
)
from data_scripts.factory.__main__ import main
from data_scripts.near_far import load_near_far

TINY = {"source_train": 3, "target_train": 1, "test_per_group": 2, "seconds": 0.5}
ARGUMENTS = {"num_machines": 1, "seed": 5, "preset": "challenge", "eval_machines": 1, **TINY}
ESC10 = Path(__file__).resolve().parents[3] / "shared" / "data" / "esc10"


def contents(folder: Path) -> dict[str, str]:
    """Map every file below `folder` to a digest of its bytes."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def read_table(path: Path) -> dict[str, str]:
    with path.open(encoding="utf-8", newline="") as file:
        return dict(csv.reader(file))


@pytest.fixture(scope="module")
def noise_dir(tmp_path_factory) -> Path:
    """Two recordings: 1 kHz in stereo at 44.1 kHz, and white noise at 16 kHz, in a subfolder."""
    folder = tmp_path_factory.mktemp("noise")
    time = np.arange(44_100) / 44_100
    tone = 0.3 * np.sin(2 * np.pi * 1_000 * time)
    soundfile.write(folder / "tone.wav", np.stack([tone, tone], axis=1), 44_100)
    (folder / "more").mkdir()
    white = 0.1 * np.random.default_rng(0).standard_normal(8_000)
    soundfile.write(folder / "more" / "white.flac", white, 16_000)
    return folder


@pytest.fixture(scope="module")
def factory(tmp_path_factory, noise_dir) -> Path:
    folder = tmp_path_factory.mktemp("factory")
    return simulate_factory(folder, noise_dir=noise_dir, components=True, **ARGUMENTS)


def test_a_quieter_hall_has_the_same_machines_in_less_noise() -> None:
    clip = next(iter(plan_clips(FactoryArguments(**ARGUMENTS))))
    usual, quiet = (
        simulate_clip(FactoryArguments(**ARGUMENTS, quieter_db=quieter_db), clip)
        for quieter_db in (0.0, 20.0)
    )
    np.testing.assert_array_equal(quiet.machine, usual.machine)
    np.testing.assert_allclose(10 * quiet.noise, usual.noise, rtol=1e-4, atol=1e-6)
    assert "quieter_db" not in FactoryArguments(**ARGUMENTS).manifest()
    with pytest.raises(ValueError, match="from -40 to 40"):
        FactoryArguments(**ARGUMENTS, quieter_db=60.0)


# ---- Evaluation sets


def test_an_evaluation_machine_is_trained_openly_and_tested_anonymously(factory) -> None:
    (machine,) = (factory / "eval_data" / "raw").iterdir()
    training = [ClipName.parse(path.name) for path in (machine / "train").iterdir()]
    assert {(name.domain, name.condition) for name in training} == {
        ("source", "normal"),
        ("target", "normal"),
    }
    tests = sorted(path.name for path in (machine / "test").iterdir())
    assert tests == [f"section_00_{index:04d}.wav" for index in range(8)]
    table = (machine / "attributes_00.csv").read_text()
    assert "train" in table
    assert "test" not in table


def test_ground_truth_tells_of_each_clip_what_was_simulated(factory, noise_dir) -> None:
    machine = machine_of(5, EVALUATION, "challenge")
    file_name = f"ground_truth_{machine.machine_type}_section_00_test.csv"
    data, domain, attributes = (
        read_table(factory / f"ground_truth_{kind}" / file_name)
        for kind in ("data", "domain", "attributes")
    )
    assert list(data) == list(domain) == list(attributes) == sorted(data)
    recordings = Recordings.find(noise_dir)
    digest = recordings.digest
    arguments = FactoryArguments(**ARGUMENTS, noise=digest)
    for anonymous, revealed in attributes.items():
        name = ClipName.parse(f"{revealed}.wav")
        assert data[anonymous] == str(int(name.condition == "anomaly"))
        assert domain[anonymous] == str(int(name.domain == "target"))
        path = factory / "eval_data" / "raw" / machine.machine_type / "test" / anonymous
        clip = PlannedClip(EVALUATION, "test", name.domain, name.condition, name.index)
        assert machine.attributes(clip.setting(machine)) == name.attributes
        again = simulate_clip(arguments, clip, recordings=recordings)
        np.testing.assert_allclose(
            soundfile.read(path)[0].T, np.stack([again.near, again.far]), atol=1 / 32_768
        )


def test_the_order_of_anonymous_names_tells_nothing() -> None:
    plan = list(plan_clips(FactoryArguments(1, 0, preset="challenge", eval_machines=2)))
    for machine in (EVALUATION, EVALUATION + 1):
        tests = [clip for clip in plan if clip.machine == machine and clip.split == "test"]
        assert sorted(clip.anonymous for clip in tests) == list(range(200))
        broken = [clip.anonymous for clip in tests if clip.condition == "anomaly"]
        healthy = [clip.anonymous for clip in tests if clip.condition == "normal"]
        by_name = np.mean(np.array(broken)[:, None] > np.array(healthy))
        assert by_name == pytest.approx(0.5, abs=3 * np.sqrt(201 / (12 * 100 * 100)))
    orders = [[c.anonymous for c in plan if c.machine == EVALUATION + n][-200:] for n in (0, 1)]
    assert orders[0] != orders[1]


def test_the_loader_finds_the_sets_and_nothing_else(factory) -> None:
    clips = load_near_far(factory)
    assert (len(clips["train"]), len(clips["test"])) == (8, 16)
    assert len(set(clips["train"]["machine_type"])) == 2
    hidden = load_near_far(factory, subsets=["eval_test"])["test"]
    assert set(hidden["condition"]) == {-1}


# ---- Components


def test_components_add_up_to_what_near_records(factory) -> None:
    clips = [
        path
        for path in sorted(factory.rglob("*.wav"))
        if path.relative_to(factory).parts[0] != "components"
    ]
    assert len(clips) == 24
    for path in clips:
        parts, _ = soundfile.read(factory / "components" / path.relative_to(factory))
        near = soundfile.read(path)[0][:, 0]
        np.testing.assert_allclose(np.clip(parts.sum(axis=1), -1, 1), near, atol=1 / 32_768)
        assert parts[:, 0].any()
        assert parts[:, 1].any()


def test_components_may_be_asked_for_later_and_change_no_clip(factory, tmp_path, noise_dir) -> None:
    simulate_factory(tmp_path, noise_dir=noise_dir, **ARGUMENTS)
    assert not (tmp_path / "components").exists()
    before = contents(tmp_path)
    simulate_factory(tmp_path, noise_dir=noise_dir, components=True, **ARGUMENTS)
    after = contents(tmp_path)
    assert before.items() <= after.items()
    assert after == contents(factory)


@pytest.mark.slow
def test_processes_and_interruptions_change_no_byte_of_any_set(
    factory, tmp_path, noise_dir
) -> None:
    options = {"noise_dir": noise_dir, "components": True, "num_workers": 2, **ARGUMENTS}
    simulate_factory(tmp_path, **options)
    whole = contents(tmp_path)
    assert whole == contents(factory)
    clips = sorted(tmp_path.rglob("*.wav"))
    for path in clips[::3]:
        path.unlink()
    clips[1].write_bytes(clips[1].read_bytes()[:500])
    next((tmp_path / "ground_truth_data").iterdir()).unlink()
    simulate_factory(tmp_path, **options)
    assert contents(tmp_path) == whole


# ---- Real noise


def test_recordings_are_brought_to_16_khz_and_unit_level(noise_dir) -> None:
    recordings = Recordings.find(noise_dir)
    assert [path.name for path in recordings.paths] == ["white.flac", "tone.wav"]
    tone = Recordings(recordings.paths[1:])
    excerpt = tone.excerpt(16_000, np.random.default_rng(0))
    assert excerpt.shape == (16_000,)
    assert np.sqrt(np.mean(np.square(excerpt))) == pytest.approx(1, abs=1e-3)
    assert np.argmax(np.abs(np.fft.rfft(excerpt))) == 1_000


def test_an_excerpt_longer_than_its_recordings_has_no_gap(noise_dir) -> None:
    (white,) = (path for path in Recordings.find(noise_dir).paths if path.suffix == ".flac")
    excerpt = Recordings((white,)).excerpt(160_000, np.random.default_rng(0))
    level = np.sqrt(np.square(excerpt).reshape(-1, 400).mean(axis=1))
    assert level.min() > 0.7
    assert level.max() < 1.5


def test_real_noise_replaces_some_noise_and_no_machine(noise_dir) -> None:
    recordings = Recordings.find(noise_dir)
    for preset in ("easy", "challenge"):
        arguments = FactoryArguments(1, 0, seconds=0.5, preset=preset)
        clip = PlannedClip(0, "train", "source", "normal", 0)
        plain, real = (
            simulate_clip(arguments, clip, recordings=choice) for choice in (None, recordings)
        )
        np.testing.assert_array_equal(plain.machine, real.machine)
        assert not np.allclose(plain.noise, real.noise, atol=1e-4)


def test_a_factory_with_other_recordings_is_another_factory(factory, noise_dir, tmp_path) -> None:
    with pytest.raises(FileExistsError, match=r"noise is '[0-9a-f]{16}' there, None here"):
        simulate_factory(factory, components=True, **ARGUMENTS)
    other = tmp_path / "other"
    other.mkdir()
    soundfile.write(other / "noise.wav", np.random.default_rng(1).uniform(-1, 1, 9_000), 16_000)
    with pytest.raises(FileExistsError, match="another factory: noise is"):
        simulate_factory(factory, noise_dir=other, components=True, **ARGUMENTS)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(9_000), r"bad\.wav is silent\. Remove it"),
        (np.ones(900), r"bad\.wav lasts 0\.056 s, expected at least 0\.1 s"),
        (np.full(9_000, np.nan), r"bad\.wav has a sample that is not a finite number"),
        (None, r"bad\.wav cannot be read .* Convert it to WAV, or remove it"),
    ],
)
def test_a_recording_that_cannot_be_used_is_named(noise_dir, tmp_path, samples, message) -> None:
    if samples is None:
        (tmp_path / "bad.wav").write_text("no sound")
    else:
        soundfile.write(tmp_path / "bad.wav", samples, 16_000, subtype="FLOAT")
    with pytest.raises(ValueError, match=message):
        simulate_factory(tmp_path / "factory", noise_dir=tmp_path, **ARGUMENTS)
    assert not (tmp_path / "factory").exists()


def test_a_folder_without_recordings_is_refused(tmp_path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileNotFoundError, match="noise_dir="):
            simulate_factory(tmp_path / "factory", noise_dir=folder, **ARGUMENTS)


def test_recordings_of_esc_10_can_be_heard() -> None:
    if not ESC10.is_dir():
        pytest.skip("the ESC-10 recordings are not beside the repository")
    recordings = Recordings.find(ESC10 / "002_rain")
    assert len(recordings.paths) == 32
    excerpt = recordings.excerpt(96_000, np.random.default_rng(0))
    assert np.abs(excerpt).max() > 1
    assert np.isfinite(excerpt).all()


# ---- The command


def test_the_command_simulates_a_challenge_with_all_its_sets(tmp_path, noise_dir, capsys) -> None:
    words = (
        "--preset challenge --machines 1 --eval_machines 1 --source_train 1 --target_train 1 "
        "--test_per_group 1 --seconds 0.5 --num_proc 1 --components --seed 2"
    )
    options = ["--output_dir", str(tmp_path), "--noise_dir", str(noise_dir), *words.split()]
    assert main(options) == 0
    assert "Simulated 2 machine(s)" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "factory.json").read_text())
    assert manifest["machine_types"] == ["fanSim", "sanderEvalSim"]
    assert manifest["arguments"]["eval_machines"] == 1
    assert main([*options[:2], *words.split()]) == 2  # without the noise: another factory
    assert "another factory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eval_machines": -1}, "eval_machines=-1 must be from 0"),
        ({"test_per_group": 2_501}, "test_per_group=2501 must be at most 2500"),
        ({"num_machines": 1_001}, "num_machines=1001 must be from"),
    ],
)
def test_sets_that_make_no_sense_are_refused(tmp_path, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        simulate_factory(tmp_path / "factory", **{**ARGUMENTS, **options})
    assert not (tmp_path / "factory").exists()


def test_the_benchmark_prints_a_ratio_for_each_family(monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["factory.py", "--preset", "easy", "--clips", "1"])
    benchmark.main()
    lines = capsys.readouterr().out.splitlines()
    families = [line.split() for line in lines[2:-2]]
    assert [words[0] for words in families] == ["fanSim", "pumpSim", "gearboxSim", "sliderSim"]
    for _, _, seconds, ratio in families:
        assert float(ratio) == pytest.approx(benchmark.SECONDS / float(seconds), rel=0.1)
    assert "x real time per core" in lines[-1]
