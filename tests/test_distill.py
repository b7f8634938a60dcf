"""From simulated pairs to a noise-aware detector: distill.py, then train.py by its recipe."""

import json
from pathlib import Path

import pytest
import torch

import distill
import score
import train
from data_scripts.factory import simulate_factory
from data_scripts.near_far import decoded, known, load_near_far
from modeling import AsdModel, NoiseAwareModel
from tests.modeling.encoders import tiny
from tests.scripts import run_script

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "beyond_na.yaml"
SIZE = {"num_machines": 1, "seed": 5, "source_train": 8, "target_train": 4, "test_per_group": 2}


@pytest.fixture(scope="module")
def pairs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A factory of one machine, with its components."""
    folder = tmp_path_factory.mktemp("pairs")
    return simulate_factory(folder, **SIZE, seconds=1.0, components=True)


@pytest.fixture(scope="module")
def teacher_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small encoder's folder."""
    folder = tmp_path_factory.mktemp("teacher")
    tiny("beats").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def encoder_dir(
    pairs_dir: Path, teacher_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What distill.py makes of the teacher."""
    folder = tmp_path_factory.mktemp("runs") / "na_encoder"
    words = ["--data_dir", pairs_dir, "--encoder_checkpoint", teacher_dir, "--output_dir", folder]
    words += ["--max_steps", 6, "--train_batch_size", 5, "--learning_rate", 1e-2]
    words += ["--validation_share", 0.25, "--eval_steps", 3, "--logging_steps", 1]
    with pytest.MonkeyPatch.context() as monkeypatch:
        run_script(distill, words, monkeypatch)
    return folder


def test_clean_is_near_without_noise(pairs_dir: Path) -> None:
    clips = load_near_far(pairs_dir, clean=True)["train"]
    assert "clean" not in known(clips)[0]
    assert "clean" not in load_near_far(pairs_dir)["train"].column_names
    for row in decoded(clips):
        near, clean = torch.from_numpy(row["near"]), torch.from_numpy(row["clean"])
        assert near.shape == clean.shape
        correlation = torch.corrcoef(torch.stack([near, clean]))[0, 1]
        assert 0.2 < correlation < 0.9999


def test_clips_without_components_are_refused_with_what_to_do(factory_dir: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^dev_data/raw/.* with --components"):
        load_near_far(factory_dir, clean=True)


def test_the_folder_holds_an_encoder_and_what_was_measured(
    encoder_dir: Path, teacher_dir: Path
) -> None:
    student, teacher = NoiseAwareModel.from_pretrained(encoder_dir), tiny("beats")
    near = torch.randn(1, 8_000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = teacher(near).last_hidden_state
        assert torch.equal(student(near).last_hidden_state, expected)  # frozen
        beside = student(near, near.flip(1)).last_hidden_state
    assert not torch.equal(beside, expected)
    result = json.loads((encoder_dir / "distillation.json").read_text())
    errors = result["held_out"]
    assert 0 < errors["hidden_state_error"] < errors["near_error"]
    assert result["arguments"]["encoder_checkpoint"] == teacher_dir.name
    lines = (encoder_dir / "trainer_state" / "log.jsonl").read_text().splitlines()
    judged = [json.loads(line) for line in lines if "near_error" in line]
    assert [line["step"] for line in judged] == [3, 6]
    assert [line["near_error"] for line in judged] == pytest.approx([errors["near_error"]] * 2)


def test_the_encoder_is_fine_tuned_by_its_recipe_and_scored(
    encoder_dir: Path, pairs_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, scores = tmp_path / "run", tmp_path / "scores"
    words = ["--recipe", RECIPE, "--encoder_checkpoint", encoder_dir, "--data_dir", pairs_dir]
    words += ["--output_dir", run, "--train_subsets", "dev", "--max_steps", 2, "--lora_rank", 2]
    words += ["--held_out_share", 0.2, "--warmup_steps", 1]
    run_script(train, words, monkeypatch)
    model = AsdModel.from_pretrained(run)
    assert model.config.encoder_config.encoder_config.model_type == "nearfar_beats"
    before = NoiseAwareModel.from_pretrained(encoder_dir).state_dict()
    moved = {
        key for key, weight in model.encoder.state_dict().items() if not weight.equal(before[key])
    }
    adapted = ("q_proj.weight", "k_proj.weight", "v_proj.weight")
    assert moved == {key for key in before if key.endswith(adapted)}
    row = decoded(load_near_far(pairs_dir)["test"])[0]
    near, far = (torch.from_numpy(row[name])[None] for name in ("near", "far"))
    with torch.no_grad():
        assert not torch.allclose(model(near, far).embedding, model(near).embedding)
    command = ["--model", run, "--data_dir", pairs_dir, "--output_dir", scores]
    run_script(score, [*command, "--num_resamples", 20], monkeypatch)
    assert 0 < json.loads((scores / "metrics.json").read_text())["official_score"] <= 1


def test_an_encoder_that_is_noise_aware_already_is_refused(
    encoder_dir: Path, pairs_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--data_dir", pairs_dir, "--encoder_checkpoint", encoder_dir]
    with pytest.raises(ValueError, match=r"noise-aware already\. Give the one that it was made of"):
        run_script(distill, [*words, "--output_dir", tmp_path / "again"], monkeypatch)
    assert not (tmp_path / "again" / "config.json").exists()
