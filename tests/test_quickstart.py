"""The benchmark over factories: resumes, and says who is ahead."""

import sys
from pathlib import Path

import pytest

from benchmarks import quickstart
from nearfar.files import write_json
from nearfar.hub import RUN_FILE


def result(seed: int, official: tuple[float, float, float, float]) -> dict[str, object]:
    systems = [
        {"system": name, "official_score": score, "auc_source": 0.7, "auc_target": 0.6}
        | {"pauc": 0.55, "ahead": None}
        for name, score in zip(quickstart.SYSTEMS, official, strict=True)
    ]
    return {"seed": seed, "seconds": 1.0, "systems": systems}


def test_a_seed_that_is_done_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated = []

    def evaluate(seed: int, folder: Path, *, demo_dir: Path | None) -> None:
        evaluated.append(seed)
        (folder / "data").mkdir(parents=True)
        write_json(folder / quickstart.RESULT, result(seed, (0.7, 0.5 + 0.01 * seed, 0.6, 0.65)))

    monkeypatch.setattr(quickstart, "evaluate_seed", evaluate)
    arguments = ["quickstart.py", "--output_dir", str(tmp_path), "--seeds", "1", "2"]
    for seeds in ([], ["3"]):
        monkeypatch.setattr(sys, "argv", [*arguments, *seeds])
        quickstart.main()
    assert evaluated == [1, 2, 3]
    assert not list(tmp_path.glob("*/data"))
    table = capsys.readouterr().out
    assert "untrained encoder: +18.00, paired 95 % interval over 3 factories" in table
    assert "log-mel 1-NN: +10.00" in table
    assert table.count("ahead on 3") == 3


def test_the_demo_is_done_only_with_its_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated = []

    def evaluate(seed: int, folder: Path, *, demo_dir: Path | None) -> None:
        evaluated.append(seed)
        folder.mkdir(exist_ok=True)
        write_json(folder / quickstart.RESULT, result(seed, (0.7, 0.6, 0.6, 0.65)))
        if demo_dir is not None and len(evaluated) > 1:
            demo_dir.mkdir()
            write_json(demo_dir / RUN_FILE, {})

    monkeypatch.setattr(quickstart, "evaluate_seed", evaluate)
    arguments = ["--output_dir", tmp_path, "--seeds", 0, "--demo_dir", tmp_path / "demo"]
    monkeypatch.setattr(sys, "argv", ["quickstart.py", *map(str, arguments)])
    for _ in range(3):
        quickstart.main()
    assert evaluated == [0, 0]


def test_the_recipes_are_read_without_a_mistake() -> None:
    import train
    from nearfar.arguments import read_recipe

    for path in sorted((quickstart.ROOT / "recipes").glob("*.yaml")):
        assert read_recipe(train.TrainArguments, path)
