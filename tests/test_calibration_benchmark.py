"""benchmarks.calibration counts alarms right and shows them with their spread over factories."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import calibration
from benchmarks.calibration import ORIGINS, format_results, measure
from benchmarks.small_systems import SYSTEMS
from modeling import Calibration
from nearfar.files import read_json
from nearfar.score_table import ScoreTable
from tests.scripts import run_script
from tests.small_systems import small_systems_at_toy_size, tiny_encoder

FAN = "2026/fan/00"


def calibrations(count: int) -> dict[str, Calibration]:
    """Return uniform calibration scores (i + 1) / (count + 1)."""
    scores = torch.arange(1, count + 1, dtype=torch.float64) / (count + 1)
    names = [f"{i}.wav" for i in range(count)]
    return {FAN: Calibration.fit(scores, names, [None] * count, origin="held_out")}


def make_table(scores: np.ndarray, condition: str) -> ScoreTable:
    count = len(scores)
    domains = np.array(["source", "target"] * (count // 2), dtype=object)
    return ScoreTable(
        machines=np.full(count, FAN, dtype=object),
        file_names=np.array([f"{i}.wav" for i in range(count)], dtype=object),
        domains=domains,
        conditions=np.full(count, condition, dtype=object),
        anomaly_scores=scores,
        p_values=np.full(count, np.nan),
        decisions=np.full(count, None, dtype=object),
    )


def test_scores_like_the_calibration_clips_alarm_at_the_nominal_rates() -> None:
    table = make_table(np.linspace(0.0001, 0.9999, 10_000), "normal")
    rows = measure(table, calibrations(999), system="frozen", origin="held out")
    assert {row["domain"]: row["num_normal"] for row in rows} == {
        "source": 5000,
        "target": 5000,
        "all": 10_000,
    }
    for row in rows:
        alarms = row["alarms"]
        assert list(alarms) == ["p <= 1 %", "p <= 5 %", "p <= 10 %", "percentile", "gamma"]
        for name, nominal in zip(alarms, (0.01, 0.05, 0.1, 0.1), strict=False):
            assert alarms[name] == pytest.approx(nominal, abs=0.002)


def test_scores_above_all_calibration_clips_always_alarm_and_anomalies_do_not_count() -> None:
    table = make_table(np.full(20, 2.0), "normal")
    for row in measure(table, calibrations(100), system="frozen", origin="held out"):
        assert set(row["alarms"].values()) == {1.0}
    assert measure(make_table(np.ones(4), "anomaly"), calibrations(9), system="", origin="") == []


def test_the_table_has_the_mean_over_machines_and_its_interval_over_factories() -> None:
    def row(system: str, origin: str, domain: str, machine: str, rate: float) -> dict:
        alarms = dict.fromkeys(("p <= 1 %", "p <= 5 %", "p <= 10 %", "percentile", "gamma"), rate)
        return {"system": system, "origin": origin, "machine": machine, "domain": domain} | {
            "num_normal": 40,
            "alarms": alarms,
        }

    factories = [
        [
            row(system, origin, domain, machine, shift + rate)
            for system in SYSTEMS
            for origin in ORIGINS
            for domain in calibration.DOMAINS
            for machine, rate in (("2026/a/00", 0.1), ("2026/b/00", 0.3))
        ]
        for shift in (0.0, 0.02)
    ]
    lines = format_results(factories).splitlines()
    assert len(lines) == 2 + 2 * 3 * 3 + 1
    # Means 20 and 22 %: their standard error is 1, times Student's 12.7 for two.
    assert lines[2].split()[-2:] == ["21.0", "(+-12.7)"]
    assert lines[-1].startswith("2 factories, 160 normal test clips")
    alone = format_results(factories[:1]).splitlines()
    assert alone[2].split()[-1] == "20.0"
    two = [[row for row in rows if row["origin"] != "cross fitted"] for rows in factories]
    assert len(format_results(two).splitlines()) == len(lines) - 2 * 3


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines of train.py that the benchmark runs, here for two steps at small size."""
    sizes = {"num_machines": 1, "source_train": 16, "target_train": 4, "test_per_group": 3}
    return small_systems_at_toy_size(monkeypatch, calibration, sizes)


@pytest.mark.slow
def test_every_way_is_measured_and_what_is_done_is_not_done_again(
    trained: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--output_dir", tmp_path, "--encoder_checkpoint", tiny_encoder(tmp_path / "encoder")]
    words += ["--seeds", 3]
    run_script(calibration, words, monkeypatch)
    table = capsys.readouterr().out
    assert "fine-tuned, left out" in table
    assert "fine-tuned, cross fitted" in table
    assert len(trained) == 2 * 2
    result = read_json(tmp_path / "seed_003" / "false_alarms.json")
    rows = result["rows"]
    assert {(row["system"], row["origin"]) for row in rows} == {
        (system, origin) for system in SYSTEMS for origin in ORIGINS
    }
    assert {row["num_normal"] for row in rows if row["domain"] == "all"} == {6}
    assert len(list(tmp_path.glob("*.png"))) == 6
    p_values = result["p_values"]["frozen, held out"]
    assert {domain: len(values) for domain, values in p_values.items()} == {
        "source": 3,
        "target": 3,
    }
    at_ten = {(r["system"], r["origin"], r["domain"]): r["alarms"]["p <= 10 %"] for r in rows}
    for title, of in result["p_values"].items():
        for domain, values in of.items():
            share = np.mean(np.array(values) <= 0.1)
            assert share == pytest.approx(at_ten[(*title.split(", "), domain)])
    assert not (tmp_path / "seed_003" / "data").exists()
    run_script(calibration, words, monkeypatch)
    assert len(trained) == 4
    again = capsys.readouterr().out
    assert again
    assert table.endswith(again)
