"""train.py with its options of training: from recordings to a run folder that is scored."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import score
import train
from assembly import fine_tuning
from data_scripts.near_far import decoded, load_near_far
from modeling import AsdConfig
from nearfar import training
from nearfar.training import TrainingInterruptedError
from tests.scripts import (
    TINY_RECIPE,
    assert_two_processes_train_as_one,
    run_script,
    weights,
)

EVERYTHING = (
    *("--gradient_accumulation_steps", 2, "--lr_scheduler_type", "inverse_sqrt"),
    *("--warmup_steps", 2, "--ema_decay", 0.9, "--target_share", 0.5, "--crop_seconds", 0.6),
    *("--mixup_alpha", 0.4, "--noise_probability", 0.5, "--gain_db", 3),
    *("--time_mask", 20, "--frequency_mask", 40, "--mask_probability", 0.5),
    *("--validation_share", 0.2, "--eval_steps", 2, "--keep_best", 2),
)


@pytest.fixture(scope="module")
def bare_dir(factory_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The factory, its first machine without attributes."""
    folder = tmp_path_factory.mktemp("data") / "factory"
    shutil.copytree(factory_dir, folder)
    machine = sorted((folder / "dev_data" / "raw").iterdir())[0]
    for path in machine.rglob("*.wav"):
        stem = re.match(r"section_\d+_\w+?_(train|test)_(normal|anomaly)_\d+", path.stem)[0]
        path.rename(path.with_name(f"{stem}_noAttribute.wav"))
    return folder


def words(data_dir: Path, output_dir: Path, *extra: object) -> list[object]:
    return ["--data_dir", data_dir, "--output_dir", output_dir, *TINY_RECIPE, *extra]


def logged(run: Path) -> list[dict[str, float]]:
    lines = (run / "trainer_state" / "log.jsonl").read_text().splitlines()
    return [values for line in lines if "step" in (values := json.loads(line))]


def test_with_everything_a_run_is_resumed_exactly_logged_and_scored(
    factory_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra: tuple[object, ...] = (*EVERYTHING, "--max_steps", 5)
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    run_script(train, words(factory_dir, whole, *extra), monkeypatch)
    extra += ("--clip_memory_gib", 1)  # which changes nothing
    calls = []
    with monkeypatch.context() as patched:
        stop = lambda *_, **__: calls.append(1) or len(calls) == 3  # noqa: E731 - one use
        patched.setattr(training, "_any_process", stop)
        with pytest.raises(TrainingInterruptedError):
            run_script(train, words(factory_dir, halves, *extra), patched)
    resumed = words(factory_dir, halves, *extra, "--resume_from_checkpoint", "latest")
    run_script(train, resumed, monkeypatch)
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(halves)[name]), name

    assert [values["step"] for values in logged(whole)] == [1, 2, 3, 4, 5]
    judged = [values["step"] for values in logged(whole) if "proxy_loss" in values]
    assert judged == [2, 4, 5]
    assert all(values["grad_norm"] > 0 for values in logged(whole))
    metrics = json.loads((whole / "metrics.json").read_text())
    assert metrics["num_validation"] > 0
    scorer = score.load_scorer(whole)
    clips = decoded(load_near_far(factory_dir)["test"])
    assert np.isfinite(scorer.score([clips[0]]).anomaly_scores).all()


def test_validation_clips_do_not_train_and_are_references(
    factory_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = {}

    def note(model, clips, *_, validation, **__):
        names = lambda items: {(r["machine"], r["file_name"]) for r in items}  # noqa: E731 - twice
        heard["train"] = names(clips[i] for i in range(len(clips)))
        heard["validation"] = names(validation[i] for i in range(len(validation)))

    monkeypatch.setattr(fine_tuning, "train", note)
    arguments = words(factory_dir, tmp_path, "--validation_share", 0.3, "--label_parts", "machine")
    run_script(train, arguments, monkeypatch)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert not heard["train"] & heard["validation"]
    assert len(heard["validation"]) == metrics["num_validation"] == 10  # of 2 * 16
    assert len(heard["train"] | heard["validation"]) == metrics["num_references"]


@pytest.mark.parametrize(
    ("options", "shared"),
    [
        (["--label_parts", "composite", "channel"], False),
        (["--label_parts", "composite"], True),
    ],
)
def test_both_channels_train_in_classes_of_their_own_or_in_shared_ones(
    options, shared, factory_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_script(train, words(factory_dir, tmp_path / "near", "--max_steps", 1), monkeypatch)
    options = [*options, "--train_channels", "near", "far", "--max_steps", 1]
    run_script(train, words(factory_dir, tmp_path / "both", *options), monkeypatch)
    near, both = (
        set(AsdConfig.from_pretrained(tmp_path / name).id2label.values())
        for name in ("near", "both")
    )
    expected = near if shared else {f"{n}|{c}" for n in near for c in ("near", "far")}
    assert both == expected
    counts = [
        json.loads((tmp_path / name / "metrics.json").read_text())["num_references"]
        for name in ("near", "both")
    ]
    assert counts[0] == counts[1]  # the bank holds each clip once


def test_pseudo_labels_are_clustered_anew_while_the_encoder_trains(
    bare_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renewed = []
    renew = fine_tuning.renewed_labels

    def note(table, labels, *, seed):
        found = renew(table, labels, seed=seed)
        renewed.append((table.embedding, labels.copy(), found))
        return found

    monkeypatch.setattr(fine_tuning, "renewed_labels", note)
    options = ("--pseudo_labels", "missing_attributes", "--pseudo_label_epochs", 1)
    options += ("--num_pseudo_labels", 2, 3, "--num_train_epochs", 3, "--mixup_alpha", 0.4)
    run_script(train, words(bare_dir, tmp_path, *options), monkeypatch)
    assert len(renewed) == 2
    assert not np.array_equal(renewed[0][0], renewed[1][0])  # by what was learnt in between
    assert np.array_equal(renewed[0][2], renewed[1][1])  # what was found is what trains on
    names = AsdConfig.from_pretrained(tmp_path).id2label
    for _, before, after in renewed:
        moved = before != after
        assert all("pseudo_" in names[label] for label in [*before[moved], *after[moved]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--lr_scheduler_type", "cosin"), "is not one of 'constant', 'cosine', 'inverse_sqrt'"),
        (("--noise_source", "pink"), "is not one of 'far', 'white'"),
        (("--ema_decay", 1.5), "ema_decay=1.5 must be in"),
        (("--train_channels", "nere"), r"\['nere'\] are unknown; there are \['near', 'far'\]"),
        (("--train_channels", "near", "near"), "each once"),
        (("--train_channels", "far", "--front_end", "wiener"), "front_end='wiener'"),
        (("--label_parts", "colour"), r"'composite'\]"),
        (("--num_pseudo_labels", 0, "--pseudo_labels", "missing_attributes"), "from 1 on"),
        (("--pseudo_label_epochs", 1), "pseudo_labels='single_class' there are none"),
        (("--keep_best", 3), "Keep some back with validation_share"),
        (("--validation_share", 1.0), "validation_share=1.0 must be"),
    ],
)
def test_a_mistake_is_answered_and_nothing_is_half_written(
    options, message, factory_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = words(factory_dir, tmp_path / "run", "--max_steps", 1, *options)
    with pytest.raises(ValueError, match=message):
        run_script(train, arguments, monkeypatch)
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_deterministic_run_refuses_what_is_not_and_others_do_not(
    factory_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []

    def note(model, *_):
        modes.append(torch.are_deterministic_algorithms_enabled())
        return model, None

    monkeypatch.setattr(train, "fine_tune", note)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        run_script(train, words(factory_dir, tmp_path / "a"), monkeypatch)
        run_script(train, words(factory_dir, tmp_path / "b", "--deterministic"), monkeypatch)
    finally:
        torch.use_deterministic_algorithms(mode=False)
    assert modes == [False, True]
    assert json.loads((tmp_path / "b" / "metrics.json").read_text())["seed"] == 5


@pytest.mark.slow
def test_two_processes_train_as_one_with_everything(factory_dir: Path, tmp_path: Path) -> None:
    arguments = ["--data_dir", factory_dir, *TINY_RECIPE, *EVERYTHING, "--max_steps", 5]
    assert_two_processes_train_as_one(arguments, tmp_path)
