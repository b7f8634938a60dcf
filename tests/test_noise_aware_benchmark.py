"""The benchmark of distillation at toy size, in this process: teaches, compares, resumes."""

from pathlib import Path

import pytest

import distill
from benchmarks import lora, noise_aware
from nearfar.arguments import parse_arguments
from nearfar.files import read_json
from tests.benchmark_steps import run_steps_here
from tests.modeling.encoders import tiny

FACTORY = ["--machines", "1", "--source_train", "6", "--target_train", "4"]
FACTORY += ["--test_per_group", "2", "--seconds", "1"]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that the benchmark runs, here in this process."""
    monkeypatch.setattr(noise_aware, "FACTORY", FACTORY)
    monkeypatch.setattr(lora, "PRETRAINING_FACTORY", FACTORY)
    toy = ["--max_steps", "2", "--num_attention_heads", "8"]
    return run_steps_here(noise_aware, monkeypatch, {"distill.py": toy})


def test_an_encoder_is_taught_compared_and_what_is_done_is_not_done_again(
    steps: list[list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiny("beats").save_pretrained(lora.encoder_folder(tmp_path, "beats"))  # pre-trained before

    def run(*words: object) -> str:
        arguments = ["--output_dir", tmp_path, "--encoders", "beats", *words]
        monkeypatch.setattr("sys.argv", ["noise_aware.py", *map(str, arguments)])
        noise_aware.main()
        table = capsys.readouterr().out
        return table[table.index("\nbeats\n") :]

    table = run("--seeds", 3)
    assert len(steps) == 2 + 1 + 2 * len(noise_aware.SYSTEMS)
    assert [words for words in steps if "--components" in words] == [steps[0], steps[2]]
    folder = noise_aware.seed_folder(tmp_path, "beats", 3, "easy")
    errors = read_json(folder / noise_aware.ERRORS_FILE)
    assert errors.keys() == noise_aware.SYSTEMS.keys()
    assert len(set(errors.values())) == len(errors)
    scored = {
        system: read_json(folder / system.replace(" ", "_") / "metrics.json") for system in errors
    }
    assert all(metrics["frozen_encoder"] for metrics in scored.values())
    assert "first system ahead by (95 % interval)" in table
    assert f"near {errors['near']:.4f} (100%)" in table
    assert not list((tmp_path / "data").iterdir())
    assert not list(tmp_path.rglob("*_run"))

    del steps[:]
    assert run("--seeds", 3) == table
    assert not steps


def test_factories_are_none_of_those_that_taught(tmp_path: Path) -> None:
    args = parse_arguments(noise_aware.NoiseAwareArguments, ["--output_dir", str(tmp_path)])
    assert args.encoders == list(lora.ENCODERS)
    assert min(args.seeds) > 109  # the README's table is of seeds up to it
    assert lora.PRETRAINING_SEED != noise_aware.PAIRS_SEED <= 7
    words = ["--data_dir", "pairs", "--encoder_checkpoint", "encoder", "--output_dir", "student"]
    words += [str(word) for word in noise_aware.DISTILLATION]
    assert parse_arguments(distill.DistillArguments, words).max_steps == 600
