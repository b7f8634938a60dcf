"""Thresholds by cross-fitting: every clip scored by what does not know it; false alarms told."""

from pathlib import Path

import pytest
import torch

import score
import train
from assembly import guards
from assembly.embedding import Embedder
from modeling import ReferenceBank
from nearfar.files import read_json
from nearfar.training import TrainingInterruptedError
from tests.scripts import TINY_RECIPE, run_script, weights
from tests.training import interrupt

CROSS_FITTED = ("--calibration", "cross_fitted", "--num_folds", 3, "--max_steps", 2)


def train_cross_fitted(data: Path, folder: Path, *extra: object) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        arguments = ["--data_dir", data, "--output_dir", folder, *TINY_RECIPE, *CROSS_FITTED]
        run_script(train, [*arguments, *extra], monkeypatch)


@pytest.fixture(scope="module")
def trained(factory_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose thresholds were cross-fitted by three folds."""
    folder = tmp_path_factory.mktemp("runs") / "crossed"
    train_cross_fitted(factory_dir, folder)
    return folder


def test_every_clip_is_a_reference_and_calibrates(trained: Path) -> None:
    bank, metrics = ReferenceBank.from_pretrained(trained), read_json(trained / "metrics.json")
    assert (metrics["num_references"], metrics["num_calibration"]) == (40, 40)
    for machine in bank.machines:
        assert bank.rule(machine) == {
            "name": "percentile",
            "quantile": 0.9,
            "scores": "cross_fitted",
        }
        calibration = bank.calibration(machine)
        assert len(set(calibration.file_names)) == 20
        assert float(calibration.anomaly_scores.min()) > 0  # no clip met itself
    card = " ".join((trained / "README.md").read_text().split())
    assert "3 more encoders were trained by the same recipe" in card
    assert "40 scores set the thresholds" in card


def test_false_alarms_are_in_the_metrics_and_in_the_card(trained: Path) -> None:
    rows = read_json(trained / "metrics.json")["false_alarms"]
    bank = ReferenceBank.from_pretrained(trained)
    assert {row["machine"] for row in rows} == {*bank.machines, "all"}
    assert {row["domain"] for row in rows} == {"source", "target", "all"}
    assert {row["nominal"] for row in rows} == {0.01, 0.05, 0.1}
    card = (trained / "README.md").read_text()
    for machine in bank.machines:
        told = bank.calibration(machine).untouched_p_values()
        share = float((told.p_values <= 0.1).double().mean())
        assert f"| {machine} | all | 20 | " in card
        (row,) = (
            row
            for row in rows
            if (row["machine"], row["domain"], row["nominal"]) == (machine, "all", 0.1)
        )
        assert row["measured"] == pytest.approx(share)


def test_the_encoder_is_the_one_that_training_alone_makes(
    trained: Path, factory_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--data_dir", factory_dir, "--output_dir", tmp_path, *TINY_RECIPE]
    run_script(train, [*arguments, "--held_out_share", 0, "--max_steps", 2], monkeypatch)
    alone = weights(tmp_path)
    assert all(torch.equal(tensor, alone[name]) for name, tensor in weights(trained).items())


def test_an_interrupted_fold_is_resumed_exactly(
    trained: Path, factory_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        interrupt(patched, 5)  # 2 updates of the system, 2 of the first fold: in the second one
        with pytest.raises(TrainingInterruptedError, match="resume_from_checkpoint latest"):
            train_cross_fitted(factory_dir, tmp_path)
    assert not (tmp_path / "run.json").exists()
    train_cross_fitted(factory_dir, tmp_path, "--resume_from_checkpoint", "latest")
    banks = [ReferenceBank.from_pretrained(folder) for folder in (trained, tmp_path)]
    for machine in banks[0].machines:
        first, second = (bank.calibration(machine) for bank in banks)
        assert torch.equal(first.anomaly_scores, second.anomaly_scores)
        assert first.file_names == second.file_names


def test_a_frozen_encoder_is_embedded_once_for_all_folds(
    factory_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = []
    embed = Embedder.__call__
    monkeypatch.setattr(Embedder, "__call__", lambda *a: described.append(a[-1]) or embed(*a))
    train_cross_fitted(factory_dir, tmp_path, "--no_training")
    assert sorted(described) == ["folds", "profiles", "references"]
    bank = ReferenceBank.from_pretrained(tmp_path)
    assert set(bank.profiles) == set(bank.machines)
    del described[:]
    train_cross_fitted(factory_dir, tmp_path / "bare", "--no_training", "--profile_clips", 0)
    assert sorted(described) == ["folds", "references"]
    assert not ReferenceBank.from_pretrained(tmp_path / "bare").profiles
    assert len(bank.calibration_scores("2026/" + bank.machines[0].split("/")[1] + "/00")) == 20


def test_a_guard_is_fitted_anew_without_each_fold(
    factory_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = []
    fit_guard = guards.fit_guard

    def counting(front_end, clips, *others, **options):
        heard.append(len(clips))
        return fit_guard(front_end, clips, *others, **options)

    monkeypatch.setattr(guards, "fit_guard", counting)
    options = ["--no_training", "--guard", "fitted", "--front_end", "spectral_subtraction"]
    train_cross_fitted(factory_dir, tmp_path, *options)
    assert heard[0] == 40
    assert sum(40 - count for count in heard[1:]) == 40


def test_autoencoders_are_cross_fitted_too(
    factory_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--data_dir", factory_dir, "--output_dir", tmp_path / "run"]
    arguments += ["--kind", "autoencoder", "--num_train_epochs", 1, "--train_batch_size", 512]
    arguments += ["--calibration", "cross_fitted", "--num_folds", 2]
    run_script(train, arguments, monkeypatch)
    bank = ReferenceBank.from_pretrained(tmp_path / "run")
    assert {len(bank.calibration_scores(name)) for name in bank.machines} == {20}
    scorer = score.load_scorer(tmp_path / "run")
    assert scorer.calibration(bank.machines[0]).rule["scores"] == "cross_fitted"


def test_folds_that_are_too_few_are_refused_before_training(
    factory_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="num_folds=1 must be 2 or more"):
        train_cross_fitted(factory_dir, tmp_path, "--num_folds", 1)
    assert not list(tmp_path.glob("trainer_state/step_*"))
