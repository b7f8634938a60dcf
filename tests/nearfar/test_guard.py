"""The guard refuses a front end that eats the machine, and lets one through that helps."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.front_ends_speed import simulate_clips
from modeling import AsdFeatureExtractor, ComplexLeastSquares, NearFrontEnd
from modeling.spectrogram import KaldiLogMel
from nearfar.guard import (
    HOP_LENGTH,
    N_FFT,
    HeardSpectra,
    contrast,
    decide,
    fit_guard,
    level_drop,
    log_power,
    stable_lines,
)

BINS = N_FFT // 2 + 1


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
    return fit_guard(front_end, KaldiLogMel(), clips, AsdFeatureExtractor(), batch_size=3)


def spectra(*, lines: float, spread: float, num_clips: int = 20) -> np.ndarray:
    """Return log spectra of a machine with a line in every fifth bin, and noise of some spread."""
    noise = np.random.default_rng(0).normal(size=(num_clips, 40 + BINS))
    return (lines * (np.arange(40 + BINS) % 5 == 0) + spread * noise).astype(np.float32)


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
    assert fan.contrast_near == pump.contrast_near
    assert fan.lines_taken_db < 3 < 6 < pump.lines_taken_db


def test_decisions_are_those_of_each_machine_alone() -> None:
    machine, near, far = simulate_clips(6, 20_000, seed=1)
    fan = clips_of("2026/fan/00", near, far)
    pump = clips_of("2026/pump/00", near[:4, :17_000], machine[:4, :17_000])
    together = fit([*fan[:3], *pump, *fan[3:]])
    alone = fit(fan) | fit(pump)
    assert together.keys() == alone.keys()
    for name in alone:
        np.testing.assert_allclose(together[name][:4], alone[name][:4], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("front_end", [NearFrontEnd(), ComplexLeastSquares()])
def test_where_nothing_changes_nothing_is_taken(front_end: torch.nn.Module) -> None:
    _, near, far = simulate_clips(3, 16_000, seed=2)
    far = far if isinstance(front_end, NearFrontEnd) else None  # no far microphone
    decision = fit(clips_of("2026/fan/00", near, far), front_end)["2026/fan/00"]
    assert decision.contrast_near == pytest.approx(decision.contrast_cleaned, abs=1e-3)
    assert decision.taken_db == pytest.approx(0, abs=1e-3)


def test_less_noise_raises_the_contrast_and_less_machine_lowers_it() -> None:
    near = spectra(lines=3.0, spread=1.0)
    assert decide(near, spectra(lines=3.0, spread=0.5)).strength == 1
    assert decide(near, spectra(lines=1.0, spread=1.0)).strength == 0
    both = contrast(spectra(lines=1.5, spread=0.5))
    assert both == pytest.approx(contrast(near), abs=1e-3)  # the ratio of both counts


def test_the_contrast_is_that_of_a_plain_loop() -> None:
    x = spectra(lines=2.0, spread=1.0, num_clips=7)[:, :40].astype(np.float64)
    ratios = []
    for i in range(7):
        others = [x[j, 1:] for j in range(7) if j != i]
        changed = min(np.linalg.norm(x[i, :-1] - other) for other in others)
        itself = min(np.linalg.norm(x[i, 1:] - other) for other in others)
        ratios.append(np.log(changed / itself))
    assert contrast(x.astype(np.float32)) == pytest.approx(np.mean(ratios), rel=1e-5)


def test_a_band_without_energy_says_nothing() -> None:
    x = spectra(lines=2.0, spread=1.0)[:, :40]
    empty = np.insert(x, 3, -15.94, axis=1)
    assert contrast(empty) == pytest.approx(contrast(x))


def test_identical_references_give_a_finite_contrast() -> None:
    assert np.isfinite(contrast(np.repeat(spectra(lines=1.0, spread=1.0, num_clips=1), 3, axis=0)))


def test_stable_lines_are_found_and_a_hill_is_none() -> None:
    time = torch.arange(64_000) / 16_000
    tones = sum(torch.sin(2 * torch.pi * f * time) for f in (500.0, 3_000.0))
    noise = torch.randn(4, 64_000, generator=torch.Generator().manual_seed(0))
    lengths = torch.full((4,), 64_000)
    found = stable_lines(log_power(noise + tones, lengths).double().numpy())
    centres = np.flatnonzero(found) * 16_000 / N_FFT
    assert {round(hz, -3) // 100 for hz in centres} <= {0, 5, 10, 30}
    assert found[32]
    assert found[192]
    assert found.sum() <= 8  # a window spreads a tone over a few bins
    hill = np.tile(-np.square((np.arange(BINS) - 200) / 60), (3, 1))
    assert not stable_lines(hill).any()


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
    heard = HeardSpectra(NearFrontEnd(), KaldiLogMel())
    together = heard(near, far, mask).embedding[1]
    alone = heard(*(x[1:, :length] for x in (near, far, mask))).embedding[0]
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_an_anomaly_and_a_single_clip_are_refused() -> None:
    _, near, far = simulate_clips(2, 16_000, seed=0)
    clips = clips_of("2026/fan/00", near, far)
    with pytest.raises(ValueError, match="2026/fan/00: the guard got 1 reference clip"):
        fit(clips[:1])
    clips[1]["condition"] = "anomaly"
    with pytest.raises(ValueError, match="normal clips, only"):
        fit(clips)
