"""The benchmark of anomaly maps at toy size, in this process: measures, resumes, draws."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib import image

from benchmarks import anomaly_map
from benchmarks.anomaly_map import FIGURES
from data_scripts.factory import Clip
from modeling.map_axes import MapAxes
from nearfar.files import read_json
from tests.small_systems import small_systems_at_toy_size, tiny_encoder


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines of train.py that the benchmark runs, here for two steps at small size."""
    monkeypatch.setattr(anomaly_map, "REFERENCES", 2)
    sizes = {"num_machines": 1, "source_train": 8, "target_train": 4, "test_per_group": 1}
    return small_systems_at_toy_size(monkeypatch, anomaly_map, sizes)


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr("sys.argv", ["anomaly_map.py", *map(str, words)])
    anomaly_map.main()


def test_maps_are_measured_once_and_a_clip_is_drawn(
    trained: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--output_dir", tmp_path / "maps", "--seeds", 1]
    arguments += ["--encoder_checkpoint", tiny_encoder(tmp_path / "encoder")]
    systems = ["--systems", "frozen", "frozen, GeM"]
    run(monkeypatch, *arguments, *systems, "--clips", 3)
    table = capsys.readouterr().out
    run(monkeypatch, *arguments, *systems, "--clips", 3)
    assert table.endswith(capsys.readouterr().out)  # nothing was done again
    assert len(trained) == 2
    rows = read_json(tmp_path / "maps" / "seed_001" / "frozen_run_maps.json")["rows"]
    assert len(rows) == 2 * 3
    assert {row["method"] for row in rows} == {"additive"}
    gem = read_json(tmp_path / "maps" / "seed_001" / "frozen_GeM_run_maps.json")["rows"]
    assert {row["method"] for row in gem} == {"occlusion"}
    # The recordings, the faults and the plain difference are the same for both systems.
    plain = "spectrogram difference"
    assert [(row["fault"], row[plain]) for row in rows] == [
        (row["fault"], row[plain]) for row in gem
    ]
    figures = [row[way][name] for row in rows for way in anomaly_map.WAYS for name in FIGURES]
    assert 0 <= min(figures) < max(figures) <= 1
    assert not [path for path in (tmp_path / "maps").glob("seed_*/*") if path.is_dir()]
    with pytest.raises(ValueError, match="has 3 clips per machine and domain, asked for are 4"):
        run(monkeypatch, *arguments, *systems, "--clips", 4)
    run(monkeypatch, *arguments, *systems[:2], "--clips", 3, "--figure", tmp_path / "map.png")
    assert image.imread(tmp_path / "map.png").std() > 0.05


def test_the_cells_of_a_fault_are_those_where_it_stands_out_over_the_rest() -> None:
    axes = MapAxes([0.0, 0.5, 1.0], [0.0, 2_000.0, 4_000.0, 6_000.0, 8_000.0, 8_001.0])
    time = np.arange(16_000) / 16_000
    late_tone = np.where(time > 0.6, np.sin(2 * np.pi * 5_000 * time), 0.0).astype(np.float32)
    hum = 30 * np.sin(2 * np.pi * 1_000 * time).astype(np.float32)
    noise = 0.01 * np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    fault = np.stack([0.1 * late_tone + 0.01 * hum, late_tone])  # most energy is in the hum
    near = fault[0] + hum + noise
    clip = Clip(near=near, far=near, machine=fault, noise=fault, fault=fault)
    assert anomaly_map.fault_cells(clip, axes).nonzero() == (np.array([1]), np.array([2]))


def test_overlap_is_the_chance_that_a_cell_of_the_fault_has_the_larger_value() -> None:
    where = np.array([[True, False], [False, True]])
    values = np.array([[3.0, 1.0], [-5.0, 0.0]])
    assert anomaly_map.overlap(values, where) == {"auc": 0.75, "mass": 0.75}
    assert anomaly_map.overlap(-np.ones((2, 2)), where) == {"auc": 0.5, "mass": 0.0}
