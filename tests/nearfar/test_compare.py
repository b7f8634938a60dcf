"""benchmarks/compare.py: systems on the same clips, side by side."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.compare import compare, format_rows, main, paired_difference
from nearfar.evaluation import ScoreTable, evaluate_scores
from nearfar.files import write_json


def make_table(*, shift: float, seed: int = 0) -> ScoreTable:
    """Return scores of two machines, anomalies `shift` standard deviations above normals."""
    rng = np.random.default_rng(seed)
    rows = np.array(
        [
            (machine, f"{domain}_{condition}_{i:03d}.wav", domain, condition)
            for machine in ("2026/fan/00", "2026/valve/00")
            for domain in ("source", "target")
            for condition in ("normal", "anomaly")
            for i in range(15)
        ],
        dtype=object,
    )
    scores = np.random.default_rng(7).normal(size=len(rows)) + 0.2 * rng.normal(size=len(rows))
    return ScoreTable(
        machines=rows[:, 0],
        file_names=rows[:, 1],
        domains=rows[:, 2],
        conditions=rows[:, 3],
        anomaly_scores=scores + shift * (rows[:, 3] == "anomaly"),
        p_values=np.full(len(rows), np.nan),
        decisions=np.full(len(rows), None, dtype=object),
    )


def take(table: ScoreTable, rows: np.ndarray) -> ScoreTable:
    return ScoreTable(**{name: column[rows] for name, column in vars(table).items()})


def write(folder: Path, table: ScoreTable) -> Path:
    folder.mkdir()
    table.write_csv(folder / "scores.csv")
    write_json(folder / "metrics.json", evaluate_scores(table, num_resamples=0))
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Return score folders of a good, a worse and a useless system."""
    tables = {"good": make_table(shift=3), "worse": make_table(shift=1, seed=1)}
    tables["useless"] = make_table(shift=0, seed=2)
    return {name: write(tmp_path / name, table) for name, table in tables.items()}


def test_each_system_has_its_own_metrics_and_is_measured_against_the_first(
    folders: dict[str, Path],
) -> None:
    rows = compare(folders)
    assert [row["system"] for row in rows] == ["good", "worse", "useless"]
    assert rows[0]["ahead"] is None
    for row, folder in zip(rows, folders.values(), strict=True):
        metrics = evaluate_scores(ScoreTable.read_csv(folder / "scores.csv"), num_resamples=0)
        assert row["official_score"] == metrics["official_score"]
        machines = metrics["machines"].values()
        for key in ("auc_source", "auc_target", "pauc"):
            assert row[key] == pytest.approx(np.mean([values[key] for values in machines]))
    for row in rows[1:]:
        difference = rows[0]["official_score"] - row["official_score"]
        assert row["ahead"]["estimate"] == pytest.approx(difference)
        assert 0 < row["ahead"]["low"] < difference < row["ahead"]["high"]


def test_the_first_system_may_be_the_worse_one(folders: dict[str, Path]) -> None:
    rows = compare({name: folders[name] for name in ("useless", "good")})
    assert rows[1]["ahead"]["high"] < 0


def test_a_system_is_not_ahead_of_itself_in_whatever_order_its_clips_stand() -> None:
    table = make_table(shift=1)
    shuffled = take(table, np.random.default_rng(0).permutation(len(table)))
    assert tuple(paired_difference(table, shuffled)) == (0.0, 0.0, 0.0)


def test_pairing_makes_the_interval_narrower_than_that_of_either_system() -> None:
    table, other = make_table(shift=1, seed=0), make_table(shift=1, seed=1)
    low, high = evaluate_scores(table)["official_score_interval"]
    paired = paired_difference(table, other)
    assert paired.high - paired.low < 0.8 * (high - low)


@pytest.mark.parametrize("lost", ["one clip", "a machine", "a name"])
def test_scores_of_different_clips_are_refused(lost: str) -> None:
    table = make_table(shift=1)
    rows = np.arange(len(table))
    if lost == "a name":
        names = table.file_names.copy()
        names[0] = "other.wav"
        other = replace(table, file_names=names)
    else:
        kept = rows != 0 if lost == "one clip" else table.machines != "2026/fan/00"
        other = take(table, kept)
    for pair in ((table, other), (other, table)):
        with pytest.raises(ValueError, match=r"2026/fan/00: the two systems scored .* not the"):
            paired_difference(*pair)


def test_a_system_without_an_official_score_is_refused_with_the_reason(
    tmp_path: Path, folders: dict[str, Path]
) -> None:
    table = make_table(shift=1)
    unlabelled = replace(table, conditions=np.full(len(table), None, dtype=object))
    folder = write(tmp_path / "unlabelled", unlabelled)
    with pytest.raises(
        ValueError, match=r"new \(.*\) cannot be compared\. The official score needs"
    ):
        compare({"good": folders["good"], "new": folder})


def test_a_folder_without_scores_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no .*nowhere.scores\.csv"):
        compare({"good": folders["good"], "new": tmp_path / "nowhere"})


def test_the_table_shows_percent_and_how_far_the_first_is_ahead() -> None:
    ahead = {"estimate": 0.0125, "low": -0.005, "high": 0.03}
    values = {"official_score": 0.5, "auc_source": 0.6, "auc_target": 0.4, "pauc": 0.55}
    rows = [
        {"system": "good", **values, "ahead": None},
        {"system": "worse", **values, "ahead": ahead},
    ]
    lines = format_rows(rows).splitlines()
    assert lines[1].split() == ["good", "50.00", "60.00", "40.00", "55.00"]
    assert lines[2].endswith("+1.25 (-0.50 to +3.00)")
    assert lines[2].startswith("worse ")


def test_the_command_prints_a_row_per_folder(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    main([f"{name}={folder}" for name, folder in folders.items()])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == list(folders)


@pytest.mark.parametrize("arguments", [[], ["a=x"], ["a", "b=x"], ["=x", "b=y"], ["a=x", "a=y"]])
def test_a_command_that_names_no_two_systems_is_refused(arguments: list[str]) -> None:
    with pytest.raises(ValueError, match="two or more score folders as NAME=FOLDER, each with"):
        main(arguments)
