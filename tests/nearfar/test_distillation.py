"""Distillation: what the student is told, and that it learns from far what to leave out of near."""

from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration, set_seed

from modeling import AsdFeatureExtractor, NoiseAwareConfig, NoiseAwareModel
from nearfar.checkpoints import latest_checkpoint
from nearfar.distillation import (
    Distillation,
    PairCollator,
    check_distillation,
    validate_distillation,
)
from nearfar.training import train
from nearfar.training_batches import augmented
from nearfar.training_clips import DrawnClips, LabelledClips
from nearfar.training_options import TrainingOptions
from tests.modeling.encoders import CLASSES, tiny, tiny_config
from tests.training import assert_resumes_exactly

EXTRACTOR = AsdFeatureExtractor()
RATE = 16_000


def pairs(num_clips: int, *, seed: int = 0) -> LabelledClips:
    """Return clips of two tones that near cannot tell apart: far hears the louder what is noise."""
    rng = np.random.default_rng(seed)
    rows, clips = [], []
    for i in range(num_clips):
        time = np.arange(4_000 + 400 * (i % 3)) / RATE
        machine, noise = (
            0.1 * np.sin(2 * np.pi * rng.choice([500, 1000, 2000, 4000]) * time + rng.uniform(0, 6))
            for _ in range(2)
        )
        near_hiss, far_hiss = 0.003 * rng.standard_normal((2, len(time)))
        row = {"machine": "2026/fan/00", "file_name": f"clip_{i}.wav", "domain": "source"}
        rows.append(row)
        sounds = {
            "near": machine + noise + near_hiss,
            "far": 0.1 * machine + 1.5 * noise + far_hiss,
            "clean": machine + near_hiss,
        }
        clips.append(row | {name: values.astype(np.float32) for name, values in sounds.items()})
    return LabelledClips(clips, np.zeros(num_clips, dtype=np.int64), rows)


def distillation(name: str = "eat") -> Distillation:
    """Return a student that is still its teacher, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student = NoiseAwareModel(NoiseAwareConfig(encoder_config=tiny_config(name)))
    student.load_encoder(tiny(name))
    return Distillation(student)


def train_tiny(
    folder: Path, options: TrainingOptions, *, clips: LabelledClips, resume: bool = False
) -> Distillation:
    """Return a trained student; the last three clips only judge it."""
    AcceleratorState._reset_state(reset_partial_state=True)
    set_seed(7)
    accelerator = Accelerator(
        cpu=True,
        dataloader_config=DataLoaderConfiguration(split_batches=True, use_seedable_sampler=True),
    )
    model = distillation()
    train(
        model,
        clips.take(np.arange(len(clips) - 3)),
        EXTRACTOR,
        options,
        accelerator,
        state_dir=folder,
        validation=clips.take(np.arange(len(clips) - 3, len(clips))),
        collator=PairCollator(EXTRACTOR),
        validator=validate_distillation,
        resume_from=latest_checkpoint(folder) if resume else None,
    )
    return model


def judged(model: Distillation, clips: LabelledClips, batch_size: int = 8) -> dict[str, float]:
    AcceleratorState._reset_state(reset_partial_state=True)
    return validate_distillation(
        model, clips, PairCollator(EXTRACTOR), Accelerator(cpu=True), batch_size=batch_size
    )


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    clips = pairs(3)
    return PairCollator(EXTRACTOR)([clips[i] for i in range(3)])


def taught(folder: Path, max_steps: int) -> Distillation:
    options = TrainingOptions(
        max_steps=max_steps,
        train_batch_size=16,
        learning_rate=1e-2,
        eval_steps=max_steps,
        selection_metric="hidden_state_error",
    )
    return train_tiny(folder, options, clips=pairs(64))


def test_a_little_distillation_brings_unheard_clips_nearer_to_clean_and_moves_fusions_alone(
    tmp_path: Path,
) -> None:
    model = taught(tmp_path, max_steps=30)
    errors = judged(model, pairs(15, seed=1))
    assert errors["hidden_state_error"] < 0.8 * errors["near_error"]
    for name, weight in distillation().student.named_parameters():
        same = torch.equal(weight, model.student.get_parameter(name))
        assert same != (".fusion." in name), name


@pytest.mark.slow
def test_the_student_learns_from_far_what_to_leave_out_of_near(tmp_path: Path) -> None:
    model, unheard = taught(tmp_path, max_steps=150), pairs(15, seed=1)
    errors = judged(model, unheard)
    assert errors["hidden_state_error"] < 0.45 * errors["near_error"]
    rows = unheard.clips
    others = [*rows[3:], *rows[:3]]  # as long
    unheard.clips = [row | {"far": other["far"]} for row, other in zip(rows, others, strict=True)]
    assert judged(model, unheard)["hidden_state_error"] > 1.5 * errors["hidden_state_error"]


@pytest.mark.parametrize("name", CLASSES)
def test_the_teacher_is_the_encoder_on_the_clean_clip_and_the_student_starts_as_it_is_on_near(
    name: str, batch
) -> None:
    model = distillation(name)
    with torch.no_grad():
        teacher = tiny(name)(
            batch["clean_values"], attention_mask=batch["attention_mask"], output_hidden_states=True
        ).hidden_states
    heard = model.hear(batch["clean_values"], batch["attention_mask"])
    assert all(torch.equal(a, b) for a, b in zip(heard, teacher, strict=True))
    assert model.training
    errors = judged(model, pairs(3))
    assert errors["hidden_state_error"] == errors["near_error"] > 0.001
    model.eval()
    assert model(**batch).loss.item() == pytest.approx(errors["near_error"], rel=1e-5)


@pytest.mark.parametrize("name", CLASSES)
def test_the_loss_is_the_mean_square_over_what_is_sound_clip_by_clip(name: str, batch) -> None:
    model, plain = distillation(name).eval(), tiny(name).double()
    errors = []
    for row, length in enumerate(batch["attention_mask"].sum(dim=1).tolist()):
        with torch.no_grad():
            near, clean = (
                plain(batch[key][row : row + 1, :length].double(), output_hidden_states=True)
                for key in ("near_values", "clean_values")
            )
        per_block = [
            np.mean([(a - b).square().mean().item() for a, b in zip(x[0], y[0], strict=True)])
            for x, y in zip(near.hidden_states[1:], clean.hidden_states[1:], strict=True)
        ]
        errors.append(np.mean(per_block))
    assert model(**batch).loss.item() == pytest.approx(np.mean(errors), rel=1e-4)


def test_it_is_judged_alike_whatever_the_batch(batch) -> None:
    model, clips = distillation(), pairs(7)
    errors = [judged(model, clips, batch_size) for batch_size in (1, 3, 7)]
    for key, value in errors[0].items():
        assert [found[key] for found in errors[1:]] == pytest.approx([value] * 2, rel=1e-4)
    blocks = [errors[0][f"block_{i}_error"] for i in (1, 2)]
    assert np.mean(blocks) == pytest.approx(errors[0]["hidden_state_error"])


@pytest.mark.parametrize("update", [2, 5])
def test_distillation_resumes_exactly(
    update: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = TrainingOptions(
        train_batch_size=3,
        num_train_epochs=2,
        learning_rate=1e-2,
        ema_decay=0.9,
        crop_seconds=0.2,
        gain_db=3.0,
        far_mixing=0.3,
        eval_steps=3,
        keep_best=2,
        selection_metric="hidden_state_error",
        save_steps=3,
    )
    clips = pairs(12)

    def train_again(folder: Path, *, resume: bool) -> torch.nn.Module:
        return train_tiny(folder, options, clips=clips, resume=resume)

    assert_resumes_exactly(tmp_path, monkeypatch, update, train_again)


def test_near_far_and_clean_are_cut_and_made_louder_together() -> None:
    clips = pairs(4)
    clips.clips = [row | {"far": row["near"], "clean": row["near"]} for row in clips.clips]
    options = TrainingOptions(crop_seconds=0.2, gain_db=6.0, seed=3)
    drawn = DrawnClips(clips, options)
    batch = PairCollator(EXTRACTOR)([drawn[i] for i in range(4)])
    heard = augmented(distillation(), batch, options, 0)
    assert heard["near_values"].shape == (4, 3_200)
    assert not torch.equal(heard["near_values"], batch["near_values"][:, :3_200])
    for name in ("far_values", "clean_values"):
        assert torch.equal(heard[name], heard["near_values"])


@pytest.mark.parametrize("missing", ["far", "clean"])
def test_a_clip_that_is_no_pair_is_refused_by_name(missing: str) -> None:
    row = pairs(1)[0] | {missing: None}
    with pytest.raises(ValueError, match=r"2026/fan/00/clip_0\.wav has no far .*--components"):
        PairCollator(EXTRACTOR)([row])


@pytest.mark.parametrize("option", [{"mixup_alpha": 0.5}, {"time_mask": 8}, {"target_share": 0.5}])
def test_what_needs_classes_is_refused(option: dict[str, float]) -> None:
    check_distillation(TrainingOptions())
    with pytest.raises(ValueError, match=f"does not read {list(option)}".replace("[", r"\[")):
        check_distillation(TrainingOptions(**option))
