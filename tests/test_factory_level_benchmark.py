"""The benchmark of a preset's level at toy size."""

from pathlib import Path

import pytest

from benchmarks import factory_level, objectives
from nearfar.files import read_json, write_json

TINY = ["--machines", "1", "--source_train", "6", "--target_train", "2", "--test_per_group", "2"]
TINY += ["--seconds", "1"]


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr("sys.argv", ["factory_level.py", *map(str, words)])
    factory_level.main()


def test_a_factory_is_measured_once_and_its_figures_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--output_dir", tmp_path, "--seeds", 3, "--preset", "easy", *TINY]
    words += ["--yardsticks", "log-mel 1-NN"]
    run(monkeypatch, *words)
    result = read_json(tmp_path / "seed_003" / "log_mel_1_NN.json")
    assert [*result["machines"]] == ["2026/fanSim/00"]  # the preset's first family
    figures = [result["official_score"], *result["machines"]["2026/fanSim/00"]]
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3].split() == ["factory", "3", *(f"{100 * value:.2f}" for value in figures)]

    monkeypatch.setattr(objectives, "simulate_factory", None)  # what is done needs no recordings
    run(monkeypatch, *words)
    with pytest.raises(ValueError, match="'preset': 'easy'"):
        run(monkeypatch, *words, "--preset", "challenge")


@pytest.mark.slow
def test_the_autoencoder_is_trained_and_scored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    enough = ["--source_train", 20, "--target_train", 10]  # for thresholds by a gamma distribution
    run(monkeypatch, "--output_dir", tmp_path, "--seeds", 3, *TINY, *enough)
    result = read_json(tmp_path / "seed_003" / "baseline_MSE.json")
    assert result["setting"]["values"]["num_train_epochs"] == 100
    assert f"{100 * result['official_score']:.2f}" in capsys.readouterr().out


def test_the_table_is_a_worked_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, official in ((1, 0.5), (2, 0.6)):
        machines = {"2026/a/00": [0.7, 0.4, 0.5 + seed / 10], "2026/b/00": [0.5, 0.6, 0.5]}
        folder = tmp_path / f"seed_{seed:03d}"
        folder.mkdir()
        result = {"official_score": official, "machines": machines}
        write_json(folder / "baseline_MSE.json", result)
    run(monkeypatch, "--output_dir", tmp_path, "--seeds", 1, 2, "--print_only")
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows[0] == ["log-mel", "1-NN", "-"]
    spread = ["(7.07)", "60.00", "(0.00)", "50.00", "(0.00)", "57.50", "(3.54)"]
    assert rows[1] == ["baseline", "MSE", "55.00", *spread]
    assert rows[2:4] == [
        ["factory", "1", "50.00", "60.00", "50.00", "55.00"],
        ["factory", "2", "60.00", "60.00", "50.00", "60.00"],
    ]
    assert rows[4] == ["lowest", "machine", "50.00", "40.00", "50.00"]
    assert rows[5] == ["highest", "machine", "70.00", "60.00", "70.00"]
