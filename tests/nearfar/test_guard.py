"""The guard refuses a front end that eats the machine, and lets one through that helps."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.front_ends_speed import simulate_clips
from modeling import AsdFeatureExtractor, ComplexLeastSquares, NearFrontEnd
from nearfar.guard import (
    HOP_LENGTH,
    LINE_WIDTH,
    MIN_APPROACH,
    N_FFT,
    NUM_BANDS,
    HeardSpectra,
    by_band,
    decide,
    distance_change,
    fit_guard,
    level_drop,
)

BINS = N_FFT // 2 + 1
NEPERS = np.log(10) / 10  # per decibel of power


def clips_of(machine: str, near: Tensor, far: Tensor | None) -> list[dict[str, Any]]:
    """Return decoded rows of one machine."""
    known = {"machine": machine, "domain": "source", "condition": "normal", "attributes": ""}
    return [
        {"near": near[i].numpy(), "far": None if far is None else far[i].numpy()}
        | {"file_name": f"{i}.wav", **known}
        for i in range(len(near))
    ]


def fit(clips: list[dict[str, Any]], front_end: torch.nn.Module | None = None) -> dict[str, Any]:
    front_end = front_end or ComplexLeastSquares()
    return fit_guard(front_end, clips, AsdFeatureExtractor(), batch_size=3)


def spectra(*, lines: float = 4.0, num_clips: int = 20) -> np.ndarray:
    """Return log spectra of a machine with a line in every fiftieth bin; clips differ in level."""
    level = np.random.default_rng(0).normal(scale=0.2, size=(num_clips, 1))
    return lines * (np.arange(BINS) % 50 == 7) + level


def less(near: np.ndarray, *, lines_db: float, rest_db: float) -> np.ndarray:
    """Return the spectra after a front end that takes so much."""
    return near - NEPERS * np.where(np.arange(BINS) % 50 == 7, lines_db, rest_db)


def test_a_canceller_passes_that_takes_the_noise_and_is_stopped_when_it_takes_the_machine() -> None:
    machine, near, far = simulate_clips(6, 32_000, seed=0)
    noise, machine = 0.3 * (near - machine), machine[:1].expand(6, -1)  # 0 dB, one machine
    near, eaten = machine + noise, machine + 0.01 * noise
    clips = clips_of("2026/fan/00", near, far) + clips_of("2026/pump/00", near, eaten)
    guard = fit(clips)
    assert {name: decision.strength for name, decision in guard.items()} == {
        "2026/fan/00": 1.0,
        "2026/pump/00": 0.0,
    }
    fan, pump = guard.values()
    assert fan.lines_taken_db - fan.rest_taken_db < 1
    assert pump.lines_taken_db - pump.rest_taken_db > 5


def test_decisions_are_those_of_each_machine_alone() -> None:
    machine, near, far = simulate_clips(6, 20_000, seed=1)
    fan = clips_of("2026/fan/00", near, far)
    pump = clips_of("2026/pump/00", near[:4, :17_000], machine[:4, :17_000])
    together = fit([*fan[:3], *pump, *fan[3:]])
    alone = fit(fan) | fit(pump)
    assert together.keys() == alone.keys()
    for name in alone:
        values = (np.array(guard[name], dtype=float) for guard in (together, alone))
        np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("front_end", [NearFrontEnd(), ComplexLeastSquares()])
def test_where_nothing_changes_nothing_is_taken(front_end: torch.nn.Module) -> None:
    _, near, far = simulate_clips(3, 16_000, seed=2)
    far = far if isinstance(front_end, NearFrontEnd) else None  # no far microphone
    decision = fit(clips_of("2026/fan/00", near, far), front_end)["2026/fan/00"]
    assert decision.strength == 1
    taken = decision.taken_db, decision.rest_taken_db
    np.testing.assert_allclose(taken, 0.0, atol=1e-3)


@pytest.mark.parametrize("rest_db", [0.0, 6.0])
@pytest.mark.parametrize("above", [-0.2, 0.2])
def test_lines_may_be_taken_as_the_rest_is_but_not_more(rest_db, above) -> None:
    near = spectra()
    lines_db = rest_db + above
    decision = decide(near, less(near, lines_db=lines_db, rest_db=rest_db))
    assert decision.strength == (above < 0)
    assert decision.lines_taken_db == pytest.approx(lines_db)
    assert decision.rest_taken_db == pytest.approx(rest_db)


@pytest.mark.parametrize("beyond", [-0.02, 0.02])
def test_lines_may_be_taken_where_that_brings_clips_nearer(beyond: float) -> None:
    near = spectra()
    eaten = less(near, lines_db=9.0, rest_db=3.0)
    middle = eaten.mean(axis=0)
    approached = middle + (1 - MIN_APPROACH - beyond) * (eaten - middle)
    decision = decide(near, approached)
    assert decision.distance_change == pytest.approx(-MIN_APPROACH - beyond)
    assert decision.strength == (beyond > 0)
    assert decision.lines_taken_db - decision.rest_taken_db == pytest.approx(6.0)


def test_distances_are_those_of_a_plain_loop() -> None:
    rng = np.random.default_rng(5)
    before, after = rng.normal(size=(7, BINS)), rng.normal(scale=0.5, size=(7, BINS))

    def nearest(x: np.ndarray) -> list[float]:
        mel = 1127 * np.log1p(np.linspace(0, 8_000, BINS) / 700)
        width = mel[-1] / NUM_BANDS
        starts = [int(np.argmin(np.abs(mel - b * width))) for b in range(NUM_BANDS)]
        bands = [
            [
                np.log(sum(np.exp(row[s:e])))
                for s, e in zip(starts, [*starts[1:], BINS], strict=True)
            ]
            for row in x
        ]
        np.testing.assert_allclose(by_band(x), bands)
        return [
            min(np.linalg.norm(np.subtract(a, b)) for j, b in enumerate(bands) if j != i)
            for i, a in enumerate(bands)
        ]

    ratios = np.divide(nearest(after), nearest(before))
    expected = np.prod(ratios) ** (1 / 7) - 1
    assert distance_change(before, after) == pytest.approx(expected)


def test_one_clip_has_no_distance_and_equal_ones_keep_theirs() -> None:
    near = spectra(num_clips=1)
    assert distance_change(near, near) is None
    twice = np.repeat(near, 2, axis=0)
    assert distance_change(twice, less(twice, lines_db=1.0, rest_db=0.0)) == 0.0


def test_a_machine_without_lines_keeps_its_front_end() -> None:
    near = spectra(lines=0.0)
    decision = decide(near, less(near, lines_db=9.0, rest_db=3.0))
    assert decision.strength == 1
    assert decision.lines_taken_db is None


def test_a_hill_is_no_line() -> None:
    hill = np.tile(-np.square((np.arange(BINS) - 200) / 60), (3, 1))
    assert decide(hill, hill).lines_taken_db is None


def test_the_decision_is_that_of_a_plain_loop() -> None:
    rng = np.random.default_rng(1)
    near = spectra(lines=3.0) + rng.normal(size=BINS) / 3
    cleaned = near - rng.uniform(0, 2, size=near.shape)
    taken = [
        np.mean([n[b] - c[b] for n, c in zip(near, cleaned, strict=True)]) for b in range(BINS)
    ]
    profile = [np.mean([n[b] for n in near]) for b in range(BINS)]
    mirrored = [*profile[LINE_WIDTH - 1 :: -1], *profile, *profile[: -LINE_WIDTH - 1 : -1]]
    lines, weights, rest = 0.0, 0.0, []
    for b in range(BINS):
        middle = b + LINE_WIDTH
        around = mirrored[middle - LINE_WIDTH // 2 : middle + LINE_WIDTH // 2 + 1]
        excess = profile[b] - sorted(around)[LINE_WIDTH // 2]
        if excess > 1:
            lines, weights = lines + (excess - 1) * taken[b], weights + excess - 1
        if excess < 0.5:
            rest.append(taken[b])
    decision = decide(near, cleaned)
    assert decision.lines_taken_db == pytest.approx(lines / weights / NEPERS)
    assert decision.rest_taken_db == pytest.approx(np.mean(rest) / NEPERS)


def test_a_steady_tone_is_a_line() -> None:
    time = torch.arange(64_000) / 16_000
    tones = sum(torch.sin(2 * torch.pi * f * time) for f in (500.0, 3_000.0))
    noise = torch.randn(4, 64_000, generator=torch.Generator().manual_seed(0))
    clips = clips_of("2026/fan/00", 0.1 * (noise + tones), 0.1 * tones.expand(4, -1))
    decision = fit(clips)["2026/fan/00"]  # far hears the tones alone
    assert decision.strength == 0
    assert decision.lines_taken_db > 10
    assert decision.rest_taken_db < 1


def test_a_level_drop_is_a_ratio_of_energies() -> None:
    before = np.log([[3.0, 1.0], [2.0, 2.0]])
    after = np.log([[0.2, 0.2], [0.04, 0.0 + 1e-30]])
    assert level_drop(before, after) == pytest.approx((10 + 20) / 2)


@pytest.mark.parametrize("length", [500, N_FFT, 5 * HOP_LENGTH + 7])
def test_a_clips_spectra_do_not_see_its_padding(length: int) -> None:
    near, far = 0.1 * torch.randn(2, 2, 6_000, generator=torch.Generator().manual_seed(3))
    mask = torch.ones(2, 6_000, dtype=torch.long)
    for values in (near, far, mask):
        values[1, length:] = 0
    heard = HeardSpectra(NearFrontEnd())
    together = heard(near, far, mask).embedding[1]
    alone = heard(*(x[1:, :length] for x in (near, far, mask))).embedding[0]
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_an_anomaly_is_refused() -> None:
    _, near, far = simulate_clips(2, 16_000, seed=0)
    clips = clips_of("2026/fan/00", near, far)
    clips[1]["condition"] = "anomaly"
    with pytest.raises(ValueError, match="normal clips, only"):
        fit(clips)
