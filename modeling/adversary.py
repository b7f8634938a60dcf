"""Gradient reversal: a classifier whose failure the encoder is trained for."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from transformers import initialization as init


class _Reversal(torch.autograd.Function):
    """Identity forward; the gradient comes back times -strength."""

    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor, strength: float) -> Tensor:
        ctx.strength = strength  # type: ignore[attr-defined]  # made for that
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401  as above
        return -ctx.strength * gradients[0], None


def reverse_gradient(values: Tensor, strength: float) -> Tensor:
    """Return `values`; their gradient is reversed and scaled (Ganin and Lempitsky, 2015).

    Args:
        values: Of any shape.
        strength: lambda, at least 0; at 0 nothing comes back.
    """
    reversed_: Tensor = _Reversal.apply(values, strength)
    return reversed_


def reversal_strength(progress: float) -> float:
    """Return lambda = 2 / (1 + e^(-10 p)) - 1: 0 at first, 1 in the end (Ganin and Lempitsky).

    Args:
        progress: p, the share of the training that is done, from 0 to 1.
    """
    if not 0 <= progress <= 1:
        raise ValueError(f"progress={progress} must be the share of training done, from 0 to 1.")
    return 2 / (1 + math.exp(-10 * progress)) - 1


class Adversary(nn.Module):
    """Two-layer classifier of what an embedding should not tell, behind a gradient reversal.

    It learns to tell source from target clips (or near from far), and the encoder to leave it
    nothing to learn from.

    Args:
        embedding_size: D, size of an embedding.
        hidden_size: Of the layer between.
        weight: Its loss counts so much beside the head's; also in the encoder, times the reversal's
            strength.

    Attributes:
        class_weights: (2,) buffer, what a clip of each class counts; 1 until `balance`.
    """

    class_weights: Tensor

    def __init__(self, embedding_size: int, *, hidden_size: int = 128, weight: float = 0.1) -> None:
        super().__init__()
        for name, value in (("hidden_size", hidden_size), ("weight", weight)):
            if not value > 0:
                raise ValueError(f"adversary_options: {name}={value} must be greater than 0.")
        self.weight = weight
        self.inner = nn.Linear(embedding_size, hidden_size)
        self.output = nn.Linear(hidden_size, 2)
        self.register_buffer("class_weights", torch.ones(2))

    def forward(self, embedding: Tensor, labels: Tensor, strength: float) -> Tensor:
        """Return the weighted loss, a float32 scalar: the mean over clips of w_y CE(., y).

        Not over the sum of their weights: a batch without target clips would then count its source
        clips in full, and the rare class would be as rare as ever.

        Args:
            embedding: (batch, D).
            labels: (batch,) int64, 0 or 1; -1 is unknown and counts nothing.
            strength: lambda of the reversal.

        Raises:
            ValueError: A label is another number, or their shape is wrong.
        """
        if labels.shape != embedding.shape[:1] or not bool(((labels >= -1) & (labels <= 1)).all()):
            raise ValueError(
                f"Labels of an adversary must be {len(embedding)} of 0, 1 or, where unknown, -1; "
                f"got {labels.tolist()}."
            )
        reversed_ = reverse_gradient(embedding, strength).to(self.inner.weight.dtype)
        logits = self.output(F.relu(self.inner(reversed_)))  # (B, 2)
        losses = F.cross_entropy(logits.float(), labels, ignore_index=-1, reduction="none")
        return self.weight * (self.class_weights.float()[labels] * losses).mean()

    @torch.no_grad()
    def balance(self, counts: Sequence[float]) -> None:
        """Let both classes count alike over all training clips: w_c = N / (2 N_c).

        Args:
            counts: Training clips of class 0 and 1, as often as each is drawn; those of unknown
                class in neither.

        Raises:
            ValueError: There is none of a class.
        """
        if min(counts) < 1:
            raise ValueError(
                f"An adversary needs training clips of both classes, but they hold {list(counts)} "
                "(source, target). Leave 'domain' out of adversaries, or give clips of both."
            )
        self.class_weights.copy_(sum(counts) / (2 * torch.tensor(counts)))

    def reset_parameters(self) -> None:
        """Start from equal weights of the classes; the layers are drawn as any."""
        init.ones_(self.class_weights)


ADVERSARIES = {"domain": Adversary, "channel": Adversary}  # name in AsdConfig -> constructor

__all__ = ["ADVERSARIES", "Adversary", "reversal_strength", "reverse_gradient"]
