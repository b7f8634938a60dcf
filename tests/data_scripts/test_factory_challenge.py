"""Laws of preset `challenge`: physics of machines and rooms, and nothing to cheat with."""

import itertools
import re

import numpy as np
import pytest

from data_scripts.clip_names import ClipName
from data_scripts.factory import (
    DAMAGES,
    EVALUATION,
    FAMILIES,
    PRESETS,
    BearingGeometry,
    FactoryArguments,
    PlannedClip,
    draw_workshop,
    machine_of,
    make_fault,
    plan_clips,
    render_clip,
    scene_of,
    simulate_clip,
)
from data_scripts.factory.parts import SAMPLING_RATE
from data_scripts.factory.plan import HALL_STREAM, stream
from data_scripts.factory.workshop import Colour, ride
from tests.data_scripts.log_mel import auc, nearest, shape

PRESET = PRESETS["challenge"]
KINDS = [(family, kind) for family in FAMILIES for kind in DAMAGES[family]]
WINDOW = 1_024  # 64 ms, a canceller's
CANCELLED = (0, 2, 4)  # machines of seed 0 on which the tests listen


def machine_in(family: str, seed: int = 0):
    return machine_of(seed, PRESET.families.index(family), "challenge")


def place_of(number: int, domain: str = "source", seed: int = 0):
    return scene_of(seed, number, domain, "challenge")


def clip_of(number: int, condition: str, index: int, *, seconds: float = 1.0, **options):
    arguments = FactoryArguments(9, 0, seconds=seconds, preset="challenge")
    split = "test" if condition == "anomaly" else "train"
    return simulate_clip(
        arguments, PlannedClip(number, split, "source", condition, index), **options
    )


def rendered(number: int, index: int, **options):
    """Render one clip of a machine; the same index has the same random numbers."""
    machine = machine_of(0, number, "challenge")
    return render_clip(
        machine,
        place_of(number),
        machine.source_settings[index % len(machine.source_settings)],
        seed=np.random.SeedSequence(index),
        num_samples=16_000,
        snr_db=PRESET.snr_db["source"],
        preset=PRESET,
        **options,
    )


def db(waveform: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(np.square(waveform, dtype=np.float64))))


def envelope_spectrum(waveform: np.ndarray) -> np.ndarray:
    """Return the amplitudes (bins,) of a waveform's squared envelope."""
    envelope = np.square(waveform, dtype=np.float64)
    return np.abs(np.fft.rfft((envelope - envelope.mean()) * np.hanning(len(envelope))))


# ---- Machines


def test_a_bearings_orders_are_those_of_its_makers_table() -> None:
    """SKF 6205: nine balls of 7.94 mm on a circle of 39.04 mm."""
    bearing = BearingGeometry(balls=9, size_ratio=7.94 / 39.04, contact_angle=0.0)
    assert bearing.inner_order == pytest.approx(5.415, abs=2e-3)
    assert bearing.outer_order == pytest.approx(3.585, abs=2e-3)
    assert bearing.cage_order == pytest.approx(0.3983, abs=2e-4)
    assert 2 * bearing.spin_order == pytest.approx(4.714, abs=2e-3)


@pytest.mark.parametrize("kind", ["outer_race", "inner_race", "ball"])
def test_a_damaged_bearing_is_struck_at_the_frequency_of_its_geometry(kind) -> None:
    machine = machine_in("bearing")
    geometry, seconds, speed_hz = machine.geometry, 8, 20.0
    angle = np.arange(seconds * SAMPLING_RATE) * (speed_hz / SAMPLING_RATE)
    (blows,) = make_fault(machine, kind, 1.0).parts
    spectrum = envelope_spectrum(blows.render(angle, 1.0, np.random.default_rng(0)))
    order = {
        "outer_race": geometry.outer_order,
        "inner_race": geometry.inner_order,
        "ball": 2 * geometry.spin_order,
    }[kind]
    carrier = order * speed_hz * seconds  # in bins
    load_zone = {"outer_race": 0.0, "inner_race": 1.0, "ball": geometry.cage_order}[kind]
    lines = [carrier + side * load_zone * speed_hz * seconds for side in (-1, 0, 1)]
    floor = np.median(spectrum[round(carrier / 2) : round(2 * carrier)])
    for line in lines:  # the blows, and what the load zone makes of them: sidebands
        assert spectrum[round(line) - 2 : round(line) + 3].max() > 5 * floor
    elsewhere = round(1.13 * carrier)
    assert spectrum[elsewhere - 2 : elsewhere + 3].max() < 5 * floor


@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_every_fault_grows_from_nothing_with_its_severity(family, kind) -> None:
    machine = machine_in(family)
    none, weak, strong = (make_fault(machine, kind, severity) for severity in (0.0, 0.5, 1.0))
    assert not none.parts
    assert not none.own_parts
    assert (none.wobble, none.speed_factor) == (0.0, 1.0)
    assert strong != weak
    assert strong.wobble >= weak.wobble
    assert strong.speed_factor <= weak.speed_factor <= 1
    for one, other in zip(weak.parts, strong.parts, strict=True):
        assert other.level_db - one.level_db == pytest.approx(20 * np.log10(2))


def test_the_issue_of_faults_is_spread_over_the_families_that_can_have_them() -> None:
    kinds = {kind for kinds in DAMAGES.values() for kind in kinds}
    assert kinds >= {
        "imbalance",
        "outer_race",
        "inner_race",
        "broken_tooth",
        "leak",
        "rub",
        "looseness",
        "timing",
        "blade",
        "slip",
    }
    owners = {kind: {f for f in FAMILIES if kind in DAMAGES[f]} for kind in kinds}
    assert owners["broken_tooth"] == {"gearbox", "ToyCar"}  # they have teeth
    assert owners["leak"] == {"valve", "pump"}  # they hold a pressure
    assert owners["timing"] == {"valve", "slider"}  # they work in cycles
    assert owners["blade"] == {"fan", "pump", "ToyDrone"}


@pytest.mark.parametrize("family", ["valve", "slider"])
def test_late_blows_come_late_by_the_severity(family) -> None:
    machine = machine_in(family)
    late = {
        severity: max(
            getattr(part, "phase", 0.0)
            for part in make_fault(machine, "timing", severity).own_parts
        )
        for severity in (0.1, 1.0)
    }
    assert late[1.0] > late[0.1] + 0.1


def test_a_severity_beyond_its_bounds_and_a_foreign_fault_are_refused() -> None:
    machine = machine_in("fan")
    for severity in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="must be from 0"):
            make_fault(machine, "rub", severity)
    with pytest.raises(ValueError, match=r"no fault 'leak'.*imbalance"):
        make_fault(machine, "leak", 0.5)


@pytest.mark.parametrize(
    ("family", "pattern", "counts"),
    [
        ("fan", r"spd_[1-3]", (3, 3)),
        ("gearbox", r"pro_[A-FXYZ]", (6, 3)),
        ("valve", "noAttribute", (1, 1)),
        ("ToyCar", r"car_[A-D][12]_spd_[1-5]_mic_2_mic_1", (18, 4)),
        ("bearing", "noAttribute", (1, 1)),
        ("slider", "noAttribute", (1, 1)),
        ("pump", r"spd_[12]_load_[1-3]", (4, 2)),
        ("ToyDrone", r"car_[A-C][12]_spd_[1-3]_mic_2_mic_1", (8, 2)),
        ("sander", r"spd_[1-5]_grit_(60|120|240)", (6, 9)),
    ],
)
def test_attributes_are_spelt_as_official_names_spell_them(family, pattern, counts) -> None:
    machine = machine_in(family)
    domains = (machine.source_settings, machine.target_settings)
    texts = [{machine.attributes(setting) for setting in settings} for settings in domains]
    assert tuple(map(len, texts)) == counts
    for text in set.union(*texts):
        assert re.fullmatch(pattern, text)
        name = ClipName.parse(f"section_00_source_train_normal_0000_{text}.wav")
        assert name.attribute_pairs() is not None
    for setting in itertools.chain(*domains):
        assert machine.tool(setting).name == setting.tool


def test_another_seed_gives_other_machines_and_another_place_other_acoustics() -> None:
    for number in range(len(FAMILIES)):
        first, second = (machine_of(seed, number, "challenge") for seed in (0, 1))
        assert first.machine_type == second.machine_type
        assert first.parts != second.parts
        assert first.speeds_hz != second.speeds_hz
        assert first.geometry != second.geometry
    source, target = (place_of(0, domain) for domain in ("source", "target"))
    assert source.workshop.levels_db != target.workshop.levels_db
    assert not np.array_equal(source.responses[3], target.responses[3])  # calls
    # The same machine, in the same place, before the same microphones.
    np.testing.assert_allclose(source.responses[0], target.responses[0], atol=1e-6)
    assert source.workshop.colours == target.workshop.colours


def test_evaluation_machines_are_of_other_families_and_other_names() -> None:
    development = [machine_of(0, number, "challenge") for number in range(5)]
    evaluation = [machine_of(0, EVALUATION + number, "challenge") for number in range(4)]
    assert not {m.family for m in development} & {m.family for m in evaluation}
    everyone = [machine_of(0, number, "challenge") for number in range(20)]
    everyone += [machine_of(0, EVALUATION + number, "challenge") for number in range(20)]
    assert len({machine.machine_type for machine in everyone}) == 40


# ---- Rooms


@pytest.mark.parametrize("number", CANCELLED)
def test_a_room_rings_longer_than_a_cancellers_window(number) -> None:
    for response in place_of(number).responses[1:, 1]:  # of the noise, at far
        direct = int(np.argmax(np.abs(response)))
        energy = np.cumsum(np.square(response[::-1], dtype=np.float64))[::-1]
        late_db = 10 * np.log10(energy[direct + WINDOW] / energy[0])
        assert late_db > -20
        falling = 10 * np.log10(energy / energy[0] + 1e-12)
        to_25_db = np.argmax(falling < -25) - np.argmax(falling < -5)  # a third of 60 dB
        assert 0.2 < 3 * to_25_db / SAMPLING_RATE < 1.5


@pytest.mark.parametrize("number", CANCELLED)
def test_no_canceller_of_one_window_takes_the_noise_away(number) -> None:
    """Least squares per frequency on the noise alone, as good as such a canceller can be."""
    for index in range(2):
        near, far = clip_of(number, "normal", index, seconds=6.0).noise
        spectra = [
            np.fft.rfft(
                np.lib.stride_tricks.sliding_window_view(channel, WINDOW)[::512]
                * np.hanning(WINDOW)
            )
            for channel in (near, far)
        ]
        cross = (spectra[0] * spectra[1].conj()).sum(axis=0)
        gain = cross / np.square(np.abs(spectra[1])).sum(axis=0)
        left = spectra[0] - gain * spectra[1]
        left_db = 10 * np.log10(np.square(np.abs(left)).sum() / np.square(np.abs(spectra[0])).sum())
        assert -12 < left_db < -0.1  # it helps, and it never does all


def test_far_hears_the_machine_too_and_in_some_places_well() -> None:
    leakage_db = []
    for number in range(len(FAMILIES)):
        responses = place_of(number).responses
        energy = np.square(responses, dtype=np.float64).sum(axis=-1)
        leakage_db.append(10 * np.log10(energy[0, 1] / energy[0, 0]))
    assert max(leakage_db) > -8
    assert min(leakage_db) < -12


def test_a_moving_source_keeps_its_energy_and_passes_its_stops_in_turn() -> None:
    stops, shares = ride(1_000, np.random.default_rng(0))
    np.testing.assert_allclose(np.square(shares).sum(axis=0), 1, atol=1e-5)
    assert len(stops) >= 2
    loudest = stops[shares.argmax(axis=0)]
    assert loudest[0] != loudest[-1]
    assert (np.abs(np.diff(loudest)) <= 1).all()


def test_a_microphones_colour_is_flat_but_for_what_it_says() -> None:
    frequency = np.array([1.0, 60.0, 1_000.0, 8_000.0])
    plain = Colour(high_pass_hz=60.0, shelves_db=(0.0, 0.0, 0.0), gain_db=6.0)
    level_db = 20 * np.log10(np.abs(plain.response(frequency)))
    np.testing.assert_allclose(level_db[1:], [6 - 3.01, 6 - 0.016, 6], atol=0.01)
    assert level_db[0] < -25
    bright = Colour(high_pass_hz=1e-3, shelves_db=(0.0, 0.0, 3.0), gain_db=0.0)
    low, high = 20 * np.log10(np.abs(bright.response(np.array([100.0, 80_000.0]))))
    assert (low, high) == pytest.approx((0, 3), abs=0.02)


def test_blows_clip_where_the_recording_is_loud_and_nothing_goes_beyond_full_scale() -> None:
    valve = PRESET.families.index("valve")
    offsets_db = {
        seed: draw_workshop(stream(seed, HALL_STREAM, valve)).level_offset_db for seed in range(8)
    }
    clipped = {}
    for choose in (min, max):
        seed = choose(offsets_db, key=offsets_db.get)
        arguments = FactoryArguments(9, seed, seconds=4.0, preset="challenge")
        clipped[choose] = 0
        for index in range(6):
            clip = simulate_clip(arguments, PlannedClip(valve, "train", "source", "normal", index))
            both = np.stack([clip.near, clip.far])
            np.testing.assert_array_equal(both, np.clip(clip.machine + clip.noise, -1, 1))
            clipped[choose] += bool((np.abs(both) == 1).any())
    assert clipped[min] == 0
    assert clipped[max] > 0


def test_every_machine_has_one_length_from_6_to_16_seconds() -> None:
    arguments = FactoryArguments(20, 0, preset="challenge")
    seconds = {arguments.num_samples(number) / SAMPLING_RATE for number in range(20)}
    assert seconds <= {6, 10, 11, 12, 16}
    assert {min(seconds), max(seconds)} == {6, 16}
    assert FactoryArguments(20, 0, preset="challenge", seconds=2.0).num_samples(3) == 32_000


# ---- No shortcuts


@pytest.mark.parametrize("number", range(len(FAMILIES)))
def test_a_fault_changes_neither_the_noise_nor_the_machines_level(number) -> None:
    for index in range(3):
        healthy, broken = rendered(number, index), rendered(number, index, anomalous=True)
        np.testing.assert_array_equal(healthy.noise, broken.noise)
        assert db(healthy.machine[0]) == pytest.approx(db(broken.machine[0]), abs=1e-3)
        assert not np.allclose(healthy.machine, broken.machine, rtol=1e-2, atol=1e-5)


def test_a_severity_of_0_is_a_healthy_machine() -> None:
    for number in (0, 2):
        healthy, broken = (
            rendered(number, 0),
            rendered(number, 0, anomalous=True, severity=0.0),
        )
        np.testing.assert_array_equal(healthy.near, broken.near)


def chance_error(num_anomalous: int, num_normal: int) -> float:
    """Return the standard deviation of the AUC of scores that tell nothing."""
    return float(np.sqrt((num_anomalous + num_normal + 1) / (12 * num_anomalous * num_normal)))


@pytest.fixture(scope="module")
def heard():
    """Source clips of three machines, 1 s: (train, normal, anomaly) for each."""
    arguments = FactoryArguments(9, 0, 20, 1, 16, 1.0, "challenge")
    groups = []
    for number in CANCELLED:
        plan = [
            clip
            for clip in plan_clips(arguments)
            if clip.machine == number and clip.domain == "source"
        ]
        clips = {clip: simulate_clip(arguments, clip) for clip in plan}
        groups.append(
            [
                [clips[clip] for clip in plan if (clip.split, clip.condition) == key]
                for key in (("train", "normal"), ("test", "normal"), ("test", "anomaly"))
            ]
        )
    return groups


def mean_auc(heard, view) -> float:
    """Return the AUC of a 1-NN on spectra of `view(clip)`, averaged over machines."""
    per_machine = []
    for groups in heard:
        train, normal, anomaly = (np.stack([shape(view(c)) for c in clips]) for clips in groups)
        per_machine.append(auc(nearest(anomaly, train), nearest(normal, train)))
    return float(np.mean(per_machine))


def test_the_noise_alone_and_the_level_alone_tell_nothing(heard) -> None:
    # Means over machines of AUCs of 16 against 16 clips; the clips are independent.
    bound = 3 * chance_error(16, 16) / np.sqrt(len(heard))
    assert mean_auc(heard, lambda clip: clip.noise[0]) == pytest.approx(0.5, abs=bound)
    by_level = np.mean(
        [
            auc(np.array([db(c.near) for c in anomaly]), np.array([db(c.near) for c in normal]))
            for _, normal, anomaly in heard
        ]
    )
    assert by_level == pytest.approx(0.5, abs=bound)


def test_the_duration_alone_tells_nothing() -> None:
    arguments = FactoryArguments(9, 0, preset="challenge")
    for number in (0, 8):  # of two lengths
        durations = {
            len(channel)
            for condition in ("normal", "anomaly")
            for clip in [
                simulate_clip(arguments, PlannedClip(number, "test", "source", condition, 0))
            ]
            for channel in (clip.near, clip.far)
        }
        assert durations == {arguments.num_samples(number)}
    assert arguments.num_samples(0) != arguments.num_samples(8)


def test_the_machine_without_the_noise_tells_clearly_more(heard) -> None:
    alone = mean_auc(heard, lambda clip: clip.machine[0])
    assert alone > 0.7
    assert alone > mean_auc(heard, lambda clip: clip.near) + 0.05


def test_worse_faults_are_found_more_often(heard) -> None:
    means = []
    for severity in (0.0, 0.3, 1.0):
        broken = [
            (
                train,
                normal,
                [clip_of(number, "anomaly", 100 + index, severity=severity) for index in range(10)],
            )
            for number, (train, normal, _) in zip(CANCELLED, heard, strict=True)
        ]
        means.append(mean_auc(broken, lambda clip: clip.machine[0]))
    assert means[0] < means[1] < means[2]
    assert means[0] == pytest.approx(0.5, abs=3 * chance_error(10, 16) / np.sqrt(3))
    assert means[2] > 0.8
