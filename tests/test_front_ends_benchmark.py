"""The benchmark of front ends: resumes, compares with near, and counts the guard fairly."""

import csv

import numpy as np
import pytest
from matplotlib import image

from benchmarks import front_ends
from benchmarks.front_ends import PARTS, Choices, choices, gain_kept, losses_taken, part_of
from nearfar.evaluation import ScoreTable

TOY = ["--machines", "1", "--source_train", "6", "--target_train", "2", "--test_per_group", "3"]
TOY += [
    "--quieter_db",
    "0",
    "10",
    "--seconds",
    "1.5",
    "--front_ends",
    "complex_least_squares",
    "--seeds",
    "1",
    "2",
]


METRICS = dict.fromkeys(PARTS, (0.6, 0.5, 0.5))
VALUES = {"si_sdr_gain_db": 0.0, "guard": {"strength": 1.0}, "log_mel": METRICS}


def run(monkeypatch, *words: object) -> None:
    monkeypatch.setattr("sys.argv", ["front_ends.py", *map(str, words)])
    front_ends.main()


@pytest.fixture
def measured(monkeypatch) -> None:
    """Time nothing: tests/test_front_ends_speed_benchmark.py does."""
    seconds = {"near": 0.1, "complex_least_squares": 0.5}
    monkeypatch.setattr(front_ends, "measure", lambda names, *_, **__: (seconds, {}))


@pytest.mark.usefixtures("measured")
def test_a_toy_factory_gives_a_table_once(tmp_path, monkeypatch, capsys) -> None:
    run(monkeypatch, *TOY, "--output_dir", tmp_path)
    tables = capsys.readouterr().out
    monkeypatch.setattr(front_ends, "evaluate", None)  # cannot be called
    run(monkeypatch, *TOY, "--output_dir", tmp_path)
    again = capsys.readouterr().out
    assert tables.endswith(again)
    lines = again.splitlines()
    for judge in ("log_mel, 2 factories", "encoder, 2 factories"):
        assert sum(line.startswith(judge) for line in lines) == 1
    rows = [line.split() for line in lines if line.startswith("complex_least_squares")]
    assert [row[1] for row in rows] == ["160", "160"]  # 80 s in half a second
    with (tmp_path / "machines.csv").open() as file:
        machines = list(csv.DictReader(file))
    assert len(machines) == 2 * 2 * 2
    assert sum(row["machine"].endswith(", 10 dB quieter") for row in machines) == 4
    assert {row["si_sdr_gain_db"] for row in machines if row["front_end"] == "near"} == {"0.0000"}
    assert {row["strength"] for row in machines} <= {"0.0000", "1.0000"}
    assert not list(tmp_path.glob("seed_*/*/*/"))  # neither recordings nor a cache


@pytest.mark.usefixtures("measured")
def test_another_front_end_is_added_to_what_is_there(tmp_path, monkeypatch) -> None:
    one = [*TOY[:-3], "--seeds", "1", "--judges", "log_mel", "--output_dir", tmp_path]
    done = []

    def evaluate(name, *_):
        done.append(name)
        return {"2026/fanSim/00": VALUES}

    monkeypatch.setattr(front_ends, "evaluate", evaluate)
    run(monkeypatch, *one, "--front_ends", "near")
    run(monkeypatch, *one)
    assert done == ["near", "near", "complex_least_squares", "complex_least_squares"]  # two halls


@pytest.mark.usefixtures("measured")
def test_results_of_other_sizes_are_not_mixed(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(front_ends, "evaluate", lambda *_: {"2026/fanSim/00": VALUES})
    one = [*TOY[:-3], "--seeds", "1", "--judges", "log_mel", "--output_dir", tmp_path]
    run(monkeypatch, *one)
    with pytest.raises(ValueError, match=r"'machines': 1, .*'machines': 2, "):
        run(monkeypatch, *one, "--machines", "2")


def result(strengths: list[float], metrics: list[list[float]]) -> dict:
    return {
        f"2026/fan/{i:02d}": {"guard": {"strength": strength}, "log_mel": {"whole": values}}
        for i, (strength, values) in enumerate(zip(strengths, metrics, strict=True))
    }


def test_guard_and_oracle_choose_near_or_cleaned_for_each_machine() -> None:
    near, cleaned = [[0.6] * 3, [0.6] * 3, [0.6] * 3], [[0.7] * 3, [0.5] * 3, [0.5] * 3]
    results = {"near": result([1] * 3, near), "rls": result([0, 0, 1], cleaned)}
    chosen = choices(results, "rls", "log_mel")
    np.testing.assert_array_equal(chosen.near, near)
    np.testing.assert_array_equal(chosen.always, cleaned)
    np.testing.assert_array_equal(chosen.guarded[:, 0], [0.6, 0.6, 0.5])
    np.testing.assert_array_equal(chosen.oracle[:, 0], [0.7, 0.6, 0.6])


def level(*values: float) -> np.ndarray:
    return np.repeat(np.array(values)[:, None], 3, axis=1)


def test_the_gain_kept_is_a_worked_example() -> None:
    # gains of always +0.20, +0.04 | -0.06, -0.02: mean 0.04; the guard stops the second and third
    factories = [
        Choices(level(0.5, 0.5), level(0.7, 0.54), level(0.7, 0.5), level(0.7, 0.54)),
        Choices(level(0.5, 0.5), level(0.44, 0.48), level(0.5, 0.48), level(0.5, 0.5)),
    ]
    assert gain_kept(factories) == pytest.approx((0.20 - 0.02) / 0.16)
    assert gain_kept([Choices(*[level(0.5)] * 4)]) is None


def test_losses_are_found_on_one_half_and_measured_on_the_other() -> None:
    def half(*always: float) -> list[Choices]:  # the guard stops the first machine only
        near, cleaned = level(0.5, 0.5, 0.5), level(*always)
        return [Choices(near, cleaned, np.concatenate([near[:1], cleaned[1:]]), near)]

    # The first loses on both halves, the second on the even one only, the third on none.
    halves = half(0.44, 0.48, 0.6), half(0.46, 0.51, 0.7)
    # even finds 1 and 2, which odd measures as -0.04 + 0.01; odd finds 1, by even -0.06.
    assert losses_taken(halves) == pytest.approx(1 - 0.01 / (-0.03 - 0.06))
    assert losses_taken([half(0.6, 0.6, 0.6)] * 2) is None
    assert losses_taken([half(0.6, 0.45, 0.6), half(0.6, 0.55, 0.6)]) is None  # luck alone


def test_each_half_has_every_second_clip_of_each_group() -> None:
    columns = [("m", d, c) for d in ("source", "target") for c in ("normal", "anomaly")] * 4
    machines, domains, conditions = (np.array(x, dtype=object) for x in zip(*columns, strict=True))
    unknown = np.full(16, np.nan)
    table = ScoreTable(
        machines=machines,
        file_names=np.array([f"{i}.wav" for i in range(16)], dtype=object),
        domains=domains,
        conditions=conditions,
        anomaly_scores=np.arange(16.0),
        p_values=unknown,
        decisions=np.full(16, None, dtype=object),
    )
    even, odd = (part_of(table, part) for part in PARTS[1:])
    assert even.anomaly_scores.tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    assert odd.anomaly_scores.tolist() == [4, 5, 6, 7, 12, 13, 14, 15]
    assert part_of(table, "whole") is table


def test_an_unknown_judge_is_answered_with_the_known_ones(tmp_path, monkeypatch) -> None:
    with pytest.raises(ValueError, match=r"\['log_mel', 'encoder'\]"):
        run(monkeypatch, *TOY, "--output_dir", tmp_path, "--judges", "log_mels")


def test_the_figure_shows_a_clip_before_and_after(tmp_path, monkeypatch, capsys) -> None:
    path = tmp_path / "clip.png"
    run(monkeypatch, *TOY, "--output_dir", tmp_path / "runs", "--figure", path)
    assert image.imread(path).std() > 0.05
    assert not (tmp_path / "runs").exists()
