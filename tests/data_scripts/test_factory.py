"""Laws of the simulated factory: what differs between healthy and broken, and what must not."""

import csv
import hashlib
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_scripts.clip_names import ClipName
from data_scripts.factory import (
    FAULTS,
    PRESETS,
    FactoryArguments,
    PlannedClip,
    acoustics,
    draw_hall,
    draw_machine,
    draw_scene,
    machine_of,
    make_fault,
    plan_clips,
    render_clip,
    scene_of,
    simulate_clip,
    simulate_factory,
)
from data_scripts.factory.__main__ import main
from data_scripts.factory.noises import diffuse_noise
from data_scripts.factory.parts import SAMPLING_RATE, Hiss, Impacts, Tones
from tests.data_scripts.log_mel import auc, log_mel, nearest, shape

EASY = Path(__file__).resolve().parents[1] / "fixtures" / "factory" / "easy.json"
TINY = {"source_train": 5, "target_train": 2, "test_per_group": 2, "seconds": 0.5}


def contents(folder: Path) -> dict[str, str]:
    """Map every file below `folder` to a digest of its bytes."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def factory(tmp_path_factory) -> Path:
    return simulate_factory(tmp_path_factory.mktemp("factory"), num_machines=4, seed=3, **TINY)


# ---- What is on disk


def test_every_clip_has_two_channels_at_16_khz_in_16_bits_and_the_length_asked_for(factory) -> None:
    clips = sorted(factory.rglob("*.wav"))
    assert len(clips) == 4 * (5 + 2 + 4 * 2)
    for clip in clips:
        header = soundfile.info(clip)
        assert (header.channels, header.samplerate, header.frames) == (2, 16_000, 8_000)
        assert header.subtype == "PCM_16"


def test_the_layout_is_the_official_one(factory) -> None:
    raw = factory / "dev_data" / "raw"
    types = {"fanSim", "pumpSim", "gearboxSim", "sliderSim"}
    assert {path.name for path in raw.iterdir()} == types
    for machine in raw.iterdir():
        assert {path.name for path in machine.iterdir()} == {"train", "test", "attributes_00.csv"}
    assert not list(factory.rglob(".partial_*"))


def test_names_say_the_folder_they_lie_in_and_training_is_normal(factory) -> None:
    for path in factory.rglob("*.wav"):
        name = ClipName.parse(path.name)
        assert name.split == path.parent.name
        assert name.condition == "normal" or name.split == "test"


def test_no_target_setting_is_a_source_setting(factory) -> None:
    for machine in ("fanSim", "pumpSim", "gearboxSim"):
        settings = {"source": set(), "target": set()}
        for path in (factory / "dev_data" / "raw" / machine).rglob("*.wav"):
            name = ClipName.parse(path.name)
            settings[name.domain].add(name.attributes)
        assert len(settings["source"]) == 4
        assert len(settings["target"]) == 2
        assert not settings["source"] & settings["target"]


def test_the_fourth_machine_tells_no_attributes(factory) -> None:
    slider = factory / "dev_data" / "raw" / "sliderSim"
    names = [ClipName.parse(path.name) for path in slider.rglob("*.wav")]
    assert {name.attributes for name in names} == {"noAttribute"}


def test_the_attribute_table_lists_every_clip_with_what_its_name_says(factory) -> None:
    raw = factory / "dev_data" / "raw"
    with (raw / "fanSim" / "attributes_00.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["file_name"] for row in rows} == {
        path.relative_to(raw).as_posix() for path in (raw / "fanSim").rglob("*.wav")
    }
    for row in rows:
        told = "_".join((row["d1p"], row["d1v"], row["d2p"], row["d2v"]))
        assert ClipName.parse(Path(row["file_name"]).name).attributes == told


# ---- One seed, one factory


def test_the_number_of_processes_does_not_change_a_byte(factory, tmp_path) -> None:
    simulate_factory(tmp_path, num_machines=4, seed=3, num_workers=2, **TINY)
    assert contents(tmp_path) == contents(factory)


def test_an_interrupted_factory_is_finished_and_what_was_there_is_kept(factory, tmp_path) -> None:
    folder = simulate_factory(tmp_path / "again", num_machines=2, seed=3, **TINY)
    whole = contents(folder)
    kept, missing, cut, *_ = sorted(folder.rglob("*.wav"))
    before = kept.stat().st_mtime_ns
    missing.unlink()
    cut.write_bytes(cut.read_bytes()[:1_000])
    simulate_factory(folder, num_machines=2, seed=3, **TINY)
    assert contents(folder) == whole
    assert kept.stat().st_mtime_ns == before


def test_another_seed_gives_other_machines_not_only_other_clips() -> None:
    first, second = (machine_of(seed, 0) for seed in (0, 1))
    assert first.speeds_hz != second.speeds_hz
    assert first.resonances != second.resonances
    assert first.parts != second.parts


def test_machines_and_clips_do_not_depend_on_how_many_others_there_are() -> None:
    small = FactoryArguments(1, 0, 5, 1, 1, 0.5)
    large = FactoryArguments(3, 0, 9, 4, 6, 0.5)
    clip = PlannedClip(0, "test", "target", "anomaly", 0)
    assert clip in set(plan_clips(small)) & set(plan_clips(large))
    np.testing.assert_array_equal(simulate_clip(small, clip).near, simulate_clip(large, clip).near)


def test_the_default_factory_sounds_as_it_always_did() -> None:
    """The figures of the README were measured on it; the samples are those of its first version.

    They may differ by one step of the converter: another computer rounds otherwise.
    """
    stored = json.loads(EASY.read_text(encoding="utf-8"))
    arguments = FactoryArguments(4, 0, seconds=1.0)
    assert arguments.preset == "easy"
    for words, samples in stored.items():
        number, split, domain, condition, index = words.split()
        clip = simulate_clip(
            arguments, PlannedClip(int(number), split, domain, condition, int(index))
        )
        pcm = np.round(32_768 * np.stack([clip.near, clip.far])[:, ::997])
        np.testing.assert_allclose(pcm, samples, atol=1)
    assert len(stored) == 12


def test_no_two_clips_of_a_factory_share_their_random_numbers() -> None:
    plan = list(plan_clips(FactoryArguments(3, 0, 7, 3, 4)))
    assert len({clip.key for clip in plan}) == len(plan)


# ---- What the microphones hear


PRESET = PRESETS["easy"]


def db(waveform: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(np.square(waveform, dtype=np.float64))))


def rendered(number: int, index: int, **options):
    """Render one clip of machine `number`; the same index has the same random numbers."""
    machine = machine_of(0, number)
    return render_clip(
        machine,
        scene_of(0, number, "source"),
        machine.source_settings[index % 4],
        seed=np.random.SeedSequence(index),
        num_samples=16_000,
        snr_db=PRESET.snr_db["source"],
        preset=PRESET,
        **options,
    )


@pytest.mark.parametrize("number", range(4))
def test_a_fault_changes_neither_the_noise_nor_the_machines_level(number) -> None:
    for index in range(5):
        healthy, broken = rendered(number, index), rendered(number, index, anomalous=True)
        np.testing.assert_array_equal(healthy.noise, broken.noise)
        assert db(healthy.machine[0]) == pytest.approx(db(broken.machine[0]), abs=1e-3)
        assert not np.allclose(healthy.machine, broken.machine, rtol=1e-2, atol=1e-5)


def test_a_clip_is_the_sum_of_its_stems_and_does_not_clip() -> None:
    for number in range(4):
        clip = rendered(number, 0, anomalous=True, severity=1.0)
        both = np.stack([clip.near, clip.far])
        np.testing.assert_array_equal(both, clip.machine + clip.noise)
        assert np.abs(both).max() < 1


@pytest.mark.parametrize("number", range(4))
def test_a_fault_stem_is_what_the_healthy_machine_at_the_same_gain_does_not_have(number) -> None:
    for index in range(3):
        plain = rendered(number, index, anomalous=True)
        clip = rendered(number, index, anomalous=True, fault_stem=True)
        assert plain.fault is None
        np.testing.assert_array_equal(clip.near, plain.near)
        assert clip.fault_kind in FAULTS[machine_of(0, number).family]
        healthy, rest = rendered(number, index).machine, clip.machine - clip.fault
        # Both microphones by one factor: the level is set after the fault.
        gain = np.vdot(rest, healthy) / np.vdot(healthy, healthy)
        np.testing.assert_allclose(rest, gain * healthy, atol=1e-5)
        assert gain != pytest.approx(1, abs=1e-6) or clip.fault_kind == "slip"


def test_a_healthy_clip_has_no_fault() -> None:
    clip = rendered(0, 0, fault_stem=True)
    assert clip.fault_kind is None
    assert not clip.fault.any()


def test_the_signal_to_noise_ratio_at_near_stays_in_the_bounds_of_the_preset() -> None:
    low, high = PRESET.snr_db["source"]
    for number in range(4):
        machine = machine_of(0, number)
        for index in range(4):
            clip = rendered(number, index)
            level_db = machine.level_db(machine.source_settings[index % 4])
            ratio_db = db(clip.machine[0]) - db(clip.noise[0]) - level_db
            assert low - 4 < ratio_db < high + 4  # 4 standard deviations of the machine's level


def test_the_far_microphone_hears_less_machine_and_more_noise_beside_it() -> None:
    gains_db = []
    for seed in range(4):
        for number in range(3):
            scene = scene_of(seed, number, "source")
            energy = np.square(scene.responses).sum(axis=-1)
            gains_db.append(10 * np.log10(energy[:, 1] / energy[:, 0]))
    machine_db, *noise_db = np.array(gains_db).T
    assert machine_db.max() < -3
    assert np.mean(noise_db) > np.mean(machine_db) + 8


def test_two_domains_are_two_places_of_one_hall() -> None:
    source, target = (scene_of(0, 0, domain) for domain in ("source", "target"))
    assert source.microphone_distance != target.microphone_distance
    assert source.noise.levels_db != target.noise.levels_db
    # One hall: its noise differs by less than that of two halls may.
    assert target.noise.voice_hz / source.noise.voice_hz == pytest.approx(1, abs=0.36)


def test_diffuse_noise_has_the_coherence_of_sound_from_everywhere() -> None:
    noise = diffuse_noise(400_000, 0.1, 600.0, np.random.default_rng(0))
    frames = np.lib.stride_tricks.sliding_window_view(noise, 512, axis=1)[:, ::256]
    spectrum = np.fft.rfft(frames * np.hanning(512))  # (2, frames, bins)
    cross = (spectrum[0] * spectrum[1].conj()).mean(axis=0)
    power = np.square(np.abs(spectrum)).mean(axis=1)
    frequency = np.fft.rfftfreq(512, 1 / SAMPLING_RATE)
    expected = np.sinc(2 * frequency * 0.1 / 343)
    # 1,560 frames, half overlapping: a standard error of about 0.03.
    np.testing.assert_allclose((cross / np.sqrt(power[0] * power[1])).real, expected, atol=0.13)


# ---- Parts


def spectrum_of(waveform: np.ndarray) -> np.ndarray:
    return np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))


def test_tones_stand_at_their_orders_of_the_shaft() -> None:
    angle = np.arange(SAMPLING_RATE) * (25.0 / SAMPLING_RATE)
    tones = Tones((2, 7), (0.0, 0.0), spread_db=0.0)
    spectrum = spectrum_of(tones.render(angle, 1.0, np.random.default_rng(0)))
    assert set(np.argsort(spectrum)[-2:]) == {50, 175}
    elsewhere = np.delete(spectrum, [f + d for f in (50, 175) for d in range(-3, 4)])
    assert elsewhere.max() < 1e-3 * spectrum.max()


def test_no_tone_folds_back_from_above_half_the_sampling_rate() -> None:
    angle = np.arange(SAMPLING_RATE) * (100.0 / SAMPLING_RATE)
    tones = Tones((1, 90), (-60.0, 0.0), spread_db=0.0)  # order 90 would fold to 7000 Hz
    spectrum = spectrum_of(tones.render(angle, 1.0, np.random.default_rng(0)))
    assert spectrum[6_990:7_011].max() < 1e-3 * spectrum[100]


def test_impacts_come_at_their_rate_whatever_the_speed() -> None:
    for speed_hz in (10.0, 20.0):
        angle = np.arange(2 * SAMPLING_RATE) * (speed_hz / SAMPLING_RATE)
        blows = Impacts(order=1.5, ring_hz=3_000.0, quality=10.0, jitter=0.0)
        waveform = blows.render(angle, 1.0, np.random.default_rng(0))
        envelope = spectrum_of(np.abs(waveform) - np.abs(waveform).mean())
        # Random strengths spread energy over all bins; the rate's own line stands above them.
        assert np.argmax(envelope[4:90]) + 4 == round(2 * 1.5 * speed_hz)


def test_a_hiss_pulsates_with_the_shaft() -> None:
    angle = np.arange(2 * SAMPLING_RATE) * (10.0 / SAMPLING_RATE)
    hiss = Hiss(2_000.0, 1.0, order=3.0, depth=0.8)
    envelope = np.square(hiss.render(angle, 1.0, np.random.default_rng(0)))
    assert np.argmax(spectrum_of(envelope - envelope.mean())[4:200]) + 4 == 2 * 30


@pytest.mark.parametrize(
    ("family", "kind"), [(family, kind) for family in FAULTS for kind in FAULTS[family]]
)
def test_every_fault_grows_with_its_severity(family, kind) -> None:
    machine = draw_machine(np.random.default_rng(1), family)
    weak, strong = (make_fault(machine, kind, severity) for severity in (0.5, 1.0))
    assert strong != weak
    assert strong.wobble >= weak.wobble
    assert strong.speed_factor <= weak.speed_factor
    for one, other in zip(weak.parts, strong.parts, strict=True):
        assert other.level_db - one.level_db == pytest.approx(20 * np.log10(2))


# ---- How hard it is


@pytest.fixture(scope="module")
def simulated():
    """Source clips of three machines, 1 s: (train, normal, anomaly) per machine."""
    arguments = FactoryArguments(3, 1, seconds=1.0)

    def group(number: int, split: str, condition: str, count: int) -> list:
        return [
            simulate_clip(arguments, PlannedClip(number, split, "source", condition, index))
            for index in range(count)
        ]

    return [
        (
            group(number, "train", "normal", 24),
            group(number, "test", "normal", 16),
            group(number, "test", "anomaly", 16),
        )
        for number in range(3)
    ]


def mean_auc(simulated, view) -> float:
    """Return the AUC of a 1-NN on spectra of `view(clip)`, averaged over machines."""
    per_machine = []
    for groups in simulated:
        train, normal, anomaly = (
            np.stack([shape(view(clip)) for clip in clips]) for clips in groups
        )
        per_machine.append(auc(nearest(anomaly, train), nearest(normal, train)))
    return float(np.mean(per_machine))


def test_neither_noise_nor_level_alone_tells_the_condition() -> None:
    arguments = FactoryArguments(1, 0, seconds=0.5)
    train, normal, anomaly = (
        [
            simulate_clip(arguments, PlannedClip(0, split, "source", condition, index))
            for index in range(count)
        ]
        for split, condition, count in (
            ("train", "normal", 32),
            ("test", "normal", 64),
            ("test", "anomaly", 64),
        )
    )
    references = np.stack([log_mel(clip.noise[0]) for clip in train])
    by_noise = auc(
        *(
            nearest(np.stack([log_mel(clip.noise[0]) for clip in clips]), references)
            for clips in (anomaly, normal)
        )
    )
    by_level = auc(*(np.array([db(clip.near) for clip in clips]) for clips in (anomaly, normal)))
    chance_error = np.sqrt(129 / (12 * 64 * 64))  # of an AUC of 64 against 64 clips
    assert by_noise == pytest.approx(0.5, abs=3 * chance_error)
    assert by_level == pytest.approx(0.5, abs=3 * chance_error)


def test_the_machine_without_the_noise_tells_clearly_more(simulated) -> None:
    mixed = mean_auc(simulated, lambda clip: clip.near)
    alone = mean_auc(simulated, lambda clip: clip.machine[0])
    assert alone > mixed + 0.1
    assert 0.55 < mixed < 0.9


def test_worse_faults_are_found_more_often(simulated) -> None:
    arguments = FactoryArguments(3, 1, seconds=1.0)
    mean = []
    for severity in (0.1, 0.4, 1.0):
        broken = [
            (
                train,
                normal,
                [
                    simulate_clip(
                        arguments,
                        PlannedClip(number, "test", "source", "anomaly", index),
                        severity=severity,
                    )
                    for index in range(6)
                ],
            )
            for number, (train, normal, _) in enumerate(simulated)
        ]
        mean.append(mean_auc(broken, lambda clip: clip.near))
    assert mean[0] < mean[1] < mean[2]
    assert mean[0] == pytest.approx(0.5, abs=0.2)


def test_settings_are_heard_in_the_machines_own_sound() -> None:
    """A nearest-centroid classifier of the setting, on the machine alone."""
    for number in range(3):
        clips = [rendered(number, index) for index in range(24)]
        features = np.stack([shape(clip.machine[0]) for clip in clips])
        setting = np.arange(24) % 4
        centroids = np.stack([features[:12][setting[:12] == s].mean(axis=0) for s in range(4)])
        distance = np.linalg.norm(features[12:, None] - centroids, axis=-1)
        assert (distance.argmin(axis=1) == setting[12:]).mean() > 0.6  # chance: 0.25


# ---- Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_machines": 0}, "num_machines=0 must be at least 1"),
        ({"seconds": -1.0}, "seconds=-1.0 must be from 0.5"),
        ({"seconds": float("nan")}, "seconds=nan must be"),
        ({"test_per_group": 0}, "test_per_group=0 must be at least 1"),
        ({"source_train": 10_001}, "at most 10000 clips"),
        ({"seed": -1}, "seed=-1 must not be negative"),
        ({"preset": "hopeless"}, "preset='hopeless' is not one of"),
        ({"num_workers": 0}, "num_workers=0 must be at least 1"),
    ],
)
def test_nonsense_is_refused_before_anything_is_written(tmp_path, options, message) -> None:
    folder = tmp_path / "factory"
    with pytest.raises(ValueError, match=message):
        simulate_factory(folder, **{"num_machines": 1, "seed": 0, **TINY, **options})
    assert not folder.exists()


def test_a_folder_with_another_factory_is_left_alone(factory) -> None:
    before = contents(factory)
    with pytest.raises(FileExistsError, match="another factory: seed is 3 there, 4 here"):
        simulate_factory(factory, num_machines=4, seed=4, **TINY)
    assert contents(factory) == before


def test_a_folder_with_other_recordings_is_left_alone(tmp_path) -> None:
    (tmp_path / "dev_data").mkdir()
    with pytest.raises(FileExistsError, match="recordings that are no factory's"):
        simulate_factory(tmp_path, num_machines=1, seed=0, **TINY)
    assert not (tmp_path / "factory.json").exists()


@pytest.mark.parametrize("seed", [8, 53, 103, 214])
def test_a_far_microphone_that_no_noise_source_could_be_closer_to_is_moved(
    seed: int, monkeypatch
) -> None:
    """In these factories, far first hangs above the machine; drawing sources would never end."""
    placed = []

    def note_places(room, absorption, highest_reflection, sources, microphones):
        placed.append((*sources, *microphones))
        return np.ones((len(sources), len(microphones), 1), dtype=np.float32)

    monkeypatch.setattr(acoustics, "impulse_responses", note_places)
    for number, domain in itertools.product(range(4), ("source", "target")):
        scene_of.__wrapped__(seed, number, domain)
    assert len(placed) == 8
    for machine, *sources, _, far in placed:
        assert 2.0 <= np.linalg.norm(far - machine) <= 4.0
        assert len(sources) == 4
        for source in sources:
            to_far, to_machine = np.linalg.norm(source - far), np.linalg.norm(source - machine)
            assert max(1.0, to_far) < to_machine


def test_without_pyroomacoustics_the_error_names_the_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pyroomacoustics", None)
    rng = np.random.default_rng(0)
    with pytest.raises(ImportError, match=r"nearfar\[factory\]"):
        draw_scene(rng, draw_hall(rng))


def test_the_command_writes_a_factory_and_says_where(tmp_path, capsys) -> None:
    words = "--machines 1 --source_train 2 --target_train 1 --test_per_group 1 --seconds 0.5"
    folder = tmp_path / "factory"
    assert main(["--output_dir", str(folder), "--num_workers", "1", *words.split()]) == 0
    assert str(folder) in capsys.readouterr().out
    manifest = json.loads((folder / "factory.json").read_text())
    assert manifest["arguments"]["seconds"] == 0.5
    assert manifest["machine_types"] == ["fanSim"]


@pytest.mark.parametrize(
    "words", ["--machines 0", "--seconds -3", "--test_per_group 0", "--num_workers 0"]
)
def test_the_command_refuses_nonsense_with_an_exit_code(tmp_path, capsys, words) -> None:
    assert main(["--output_dir", str(tmp_path / "factory"), *words.split()]) != 0
    assert "error: " in capsys.readouterr().err


def test_the_command_refuses_a_folder_it_cannot_write(tmp_path, capsys) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    assert main(["--output_dir", str(in_the_way / "factory"), "--num_workers", "1"]) != 0
    assert "error: " in capsys.readouterr().err
