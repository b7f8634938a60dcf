"""Teach a noise-aware encoder, from simulated pairs, to hear a machine in noise as without it.

The winner of DCASE 2026 Task 2 (MERL, TR2026-100): the teacher is the frozen encoder on the clean
clip, the student the same encoder on near, with far beside it; only what it adds to the encoder
trains. Clean clips are normal training clips of a simulated factory, which knows them.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import Dataset

from nearfar.embeddings import evaluation_mode, model_inputs
from nearfar.selection import held_out_batches, sum_over_processes
from nearfar.training_clips import Collator
from nearfar.training_options import TrainingOptions

logger = logging.getLogger(__name__)


class DistillationOutput(NamedTuple):
    """What training takes: the scalar loss."""

    loss: Tensor


class HeardAs(NamedTuple):
    """What training asks of a model's configuration: near is heard as it is."""

    sampling_rate: int
    front_end: Literal["near"] = "near"
    channels: tuple[str, ...] = ("near",)


class Distillation(nn.Module):
    """A noise-aware encoder and, in it, its teacher.

    Without the far channel a noise-aware encoder is the encoder that it was made of, to the bit,
    as long as that stays frozen: so student and teacher share their weights.

    Args:
        student: Called like `NoiseAwareModel`, which nearfar must not import. Its encoder is frozen
            here.

    Attributes:
        config: What training asks of one.
    """

    def __init__(self, student: Any) -> None:  # noqa: ANN401 - see above
        super().__init__()
        student.freeze_encoder()
        self.student = student
        self.config = HeardAs(sampling_rate=student.config.sampling_rate)

    def forward(
        self,
        near_values: Tensor,
        far_values: Tensor,
        clean_values: Tensor,
        attention_mask: Tensor,
        has_far: Tensor | None = None,
    ) -> DistillationOutput:
        """Return the mean over clips and blocks of `hidden_state_errors`.

        Args:
            near_values: (batch, num_samples) float32 in [-1, 1], padded at the end.
            far_values: Same shape.
            clean_values: Same shape, what near would be without noise.
            attention_mask: (batch, num_samples), 1 = sound, then 0 = padding.
            has_far: (batch,) bool; None: all clips have a far channel.
        """
        student = self.student(
            near_values,
            far_values,
            attention_mask=attention_mask,
            has_far=has_far,
            output_hidden_states=True,
        ).hidden_states
        teacher = self.hear(clean_values, attention_mask)
        return DistillationOutput(self.errors(student, teacher, attention_mask).mean())

    @torch.no_grad()
    def hear(self, values: Tensor, attention_mask: Tensor) -> Sequence[Tensor]:
        """Return the teacher's hidden states of one channel: before, and after each block."""
        with evaluation_mode(self.student):
            output = self.student(values, attention_mask=attention_mask, output_hidden_states=True)
        hidden_states: Sequence[Tensor] = output.hidden_states
        return hidden_states

    def errors(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], attention_mask: Tensor
    ) -> Tensor:
        """Return how far hidden states lie apart after each block, (batch, blocks) float32.

        The mean over dimensions and over tokens that are sound of the squared difference.

        Args:
            student: Hidden states before the first block, which do not count, and after each.
            teacher: Those of the clean clips.
            attention_mask: (batch, num_samples).
        """
        patch_mask = self.student.patch_mask(attention_mask)
        errors = []
        for heard, wanted in zip(student[1:], teacher[1:], strict=True):
            squares = (heard.float() - wanted.float()).square().mean(dim=-1, keepdim=True)
            class_tokens, patches = self.student.split(squares)  # (B, C, 1), (B, N, 1)
            tokens = torch.cat([class_tokens, patches], dim=1)[..., 0]
            sound = torch.cat([tokens.new_ones(class_tokens.shape[:2]), patch_mask], dim=1)
            errors.append((tokens * sound).sum(dim=1) / sound.sum(dim=1))
        return torch.stack(errors, dim=1)


class PairCollator(Collator):
    """Makes a batch of simulated rows: near, far and `clean_values`."""

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Return one batch, as `Collator` but without labels."""
        batch = super().__call__(rows)
        del batch["labels"], batch["domain_labels"]
        return batch

    def inputs(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return what `Distillation.forward` takes."""
        for row in rows:
            if row["far"] is None or row.get("clean") is None:
                raise ValueError(
                    f"{row['machine']}/{row['file_name']} has no far channel, or nothing clean to "
                    "learn from. Give a simulated factory, written with --components."
                )
        inputs = super().inputs(rows)
        clean = [{**row, "near": row["clean"], "far": None} for row in rows]
        return inputs | {"clean_values": model_inputs(clean, self.feature_extractor)["near_values"]}


def check_distillation(options: TrainingOptions) -> None:
    """Raise ValueError where an option makes no sense without classes."""
    useless = ("mixup_alpha", "time_mask", "frequency_mask", "pseudo_label_epochs", "target_share")
    if given := [name for name in useless if getattr(options, name)]:
        raise ValueError(f"Distillation does not read {given}. Leave them out.")


@torch.no_grad()
def validate_distillation(
    model: nn.Module,
    clips: Dataset[dict[str, Any]],
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
    accelerator: Accelerator,
    *,
    batch_size: int,
    num_workers: int = 0,
) -> dict[str, float]:
    """Return how far student and teacher are apart on clips, heard whole and as they are.

    Args:
        model: A `Distillation`; it is put back into the mode it was in.
        clips: Map-style, with a length.
        collate: A `PairCollator`.
        accelerator: Each process takes its share of the clips; all return the same.
        batch_size: Clips at once, in each process.
        num_workers: Processes that decode ahead.

    Returns:
        `hidden_state_error`, the mean over clips and blocks; `near_error`, that of the encoder on
        near alone; and `block_<l>_error`, of the student after block l, from 1.
    """
    distillation: Any = model
    sized: Any = clips
    order = range(len(sized))
    loader = held_out_batches(
        clips, order, collate, accelerator, batch_size=batch_size, num_workers=num_workers
    )
    blocks = len(distillation.student.layers)
    sums = torch.zeros(2 * blocks + 1, dtype=torch.float64)
    with evaluation_mode(model):
        for batch in loader:
            inputs = {name: values.to(accelerator.device) for name, values in batch.items()}
            mask = inputs["attention_mask"]
            teacher = distillation.hear(inputs["clean_values"], mask)
            near = distillation.hear(inputs["near_values"], mask)
            student = distillation.student(
                inputs["near_values"],
                inputs["far_values"],
                attention_mask=mask,
                has_far=inputs["has_far"],
                output_hidden_states=True,
            ).hidden_states
            errors = [distillation.errors(heard, teacher, mask) for heard in (student, near)]
            found = torch.cat(errors, dim=1).sum(dim=0).cpu().double()
            sums += torch.cat([found, torch.tensor([len(mask)], dtype=torch.float64)])
    *totals, count = sum_over_processes(sums, accelerator)
    of_student, of_near = totals[:blocks], totals[blocks:]
    values = {
        "hidden_state_error": sum(of_student) / blocks / count,
        "near_error": sum(of_near) / blocks / count,
    }
    logger.info(
        "Held-out hidden-state error %.4f; of near alone %.4f.",
        values["hidden_state_error"],
        values["near_error"],
    )
    return values | {f"block_{i}_error": e / count for i, e in enumerate(of_student, start=1)}
