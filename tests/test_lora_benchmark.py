"""The benchmark of LoRA at toy size, in this process: pre-trains, compares, resumes."""

from pathlib import Path

import pytest

import train
from benchmarks import lora
from modeling import EatModel
from nearfar.arguments import parse_arguments
from nearfar.files import read_json
from tests.benchmark_steps import run_steps_here
from tests.tiny import ENCODERS as TINY_ENCODERS

FACTORY = ["--machines", "1", "--source_train", "6", "--target_train", "4"]
FACTORY += ["--test_per_group", "2", "--seconds", "1"]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that the benchmark runs, here in this process and with tiny encoders."""
    monkeypatch.setattr(lora, "ENCODERS", TINY_ENCODERS)
    monkeypatch.setattr(lora, "FACTORY", FACTORY)
    monkeypatch.setattr(lora, "PRETRAINING_FACTORY", FACTORY)
    return run_steps_here(lora, monkeypatch, {"train.py": ["--max_steps", "2"]})


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr("sys.argv", ["lora.py", *map(str, words)])
    lora.main()


@pytest.mark.slow
def test_an_encoder_is_pre_trained_compared_and_what_is_done_is_not_done_again(
    steps: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--output_dir", tmp_path, "--encoders", "eat", "--seeds", 1, 2]
    run(monkeypatch, *arguments)
    # Twice the pre-training's, then for each seed one to simulate and two for each system.
    assert len(steps) == 2 + 2 * (1 + 2 * len(lora.SYSTEMS))
    EatModel.from_pretrained(tmp_path / "eat" / "encoder")
    frozen = {s: tmp_path / "eat" / "seed_001" / s.replace(" ", "_") for s in lora.SYSTEMS}
    metrics = {name: read_json(path / "metrics.json") for name, path in frozen.items()}
    assert [m["frozen_encoder"] for m in metrics.values()] == [False, True, False]
    assert {m["seed"] for m in metrics.values()} == {1}
    assert not list((tmp_path / "data").iterdir())
    assert not list(tmp_path.rglob("*_run"))
    table = capsys.readouterr().out
    assert "LoRA minus frozen: " in table
    assert "LoRA minus full fine-tune: " in table
    assert "paired 95 % interval over 2 factories" in table

    del steps[:]
    (frozen["LoRA"] / "metrics.json").unlink()
    run(monkeypatch, *arguments)
    assert len(steps) == 1 + 2  # that factory, and that system
    assert "--lora_rank" in steps[1]
    again = capsys.readouterr().out
    assert again[again.index("\neat\n") :] == table[table.index("\neat\n") :]


def test_systems_differ_in_how_they_train_and_in_nothing_else() -> None:
    paths = ["--data_dir", "data", "--output_dir", "run", "--recipe", str(lora.TRAIN[-1])]
    found = {}
    for name, options in lora.SYSTEMS.items():
        words = [*paths, *map(str, options)]
        found[name] = vars(parse_arguments(train.TrainArguments, words))
    training = {"max_steps", "warmup_steps", "learning_rate", "no_training"}
    training |= {"lora_rank", "lora_alpha", "lora_dropout", "lora_target_modules"}
    for values in found.values():
        changed = {key for key, value in values.items() if value != found["frozen"][key]}
        assert changed <= training
    assert [values["no_training"] for values in found.values()] == [False, True, False]
    assert [values["lora_rank"] is None for values in found.values()] == [False, True, True]


def test_held_out_factories_are_none_of_those_for_tuning(tmp_path: Path) -> None:
    args = parse_arguments(lora.LoraArguments, ["--output_dir", str(tmp_path)])
    assert args.encoders == list(lora.ENCODERS)
    assert min(args.seeds) > 109  # the README's table is of seeds up to it
    assert lora.PRETRAINING_SEED <= 7


def test_an_unknown_encoder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"\['ast'\] are unknown; there are \['beats'"):
        run(monkeypatch, "--output_dir", tmp_path, "--encoders", "ast")
