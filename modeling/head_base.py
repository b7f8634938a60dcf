"""What all training heads share: an embedding and labels in, logits and a loss out."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class HeadOutput(NamedTuple):
    """What a head makes of a batch.

    Attributes:
        logits: (batch, C) float32 (float64 if the embedding is), with margins where there are
            labels.
        loss: Scalar, the mean over clips; None without labels.
    """

    logits: Tensor
    loss: Tensor | None


class Head(nn.Module):
    """Base of the heads; a subclass says what the logits and the loss are.

    A head computes in float32, whatever the precision around it: two bfloat16 directions half a
    degree apart can be one and the same.

    Args:
        num_classes: C, number of proxy classes.

    Requirements:
        Labels are int64 (batch,), or soft ones (batch, C) such as mixup makes.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, embedding: Tensor, labels: Tensor | None = None) -> HeadOutput:
        """Return logits and, with labels, the loss.

        Args:
            embedding: (batch, D), of any length and floating type; it is normalised here.
            labels: (batch,) int64, or (batch, C) floating in [0, 1]. None as at inference.

        Raises:
            ValueError: A label is no class, or a soft one no share, or their shape is wrong.
        """
        with torch.autocast(embedding.device.type, enabled=False):
            embedding = embedding.to(torch.promote_types(embedding.dtype, torch.float32))
            if labels is not None:
                self.check_labels(len(embedding), labels)
            return self.classify(embedding, labels)

    def classify(self, embedding: Tensor, labels: Tensor | None) -> HeadOutput:
        """Do what `forward` promises, with labels that are known to fit."""
        logits = self.logits(embedding, labels)
        return HeadOutput(logits, None if labels is None else self.loss(logits, labels))

    def logits(self, embedding: Tensor, labels: Tensor | None) -> Tensor:
        """Return (batch, C)."""
        raise NotImplementedError

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the softmax cross-entropy, -sum_c y_c log p_c with soft labels y."""
        return F.cross_entropy(logits, as_targets(labels, logits))

    def reset_parameters(self) -> None:
        """Draw the weights of this module, but for those of modules in it, anew."""

    def check_labels(self, num_clips: int, labels: Tensor) -> None:
        """Raise ValueError unless the labels fit a batch."""
        soft = labels.is_floating_point()
        expected = (num_clips, self.num_classes) if soft else (num_clips,)
        if labels.shape != expected:
            raise ValueError(
                f"{'Soft' if soft else 'Integer'} labels have shape {tuple(labels.shape)}, "
                f"expected {expected}."
            )
        low, high = 0, 1 if soft else self.num_classes - 1
        if labels.numel() and not bool(((labels >= low) & (labels <= high)).all()):
            raise ValueError(
                f"Labels range from {labels.min().item()} to {labels.max().item()}, but "
                f"{'soft ones are shares' if soft else 'this head knows classes'} from 0 to {high}."
                " Does num_labels match the classes of the training clips?"
            )


def cosines(embedding: Tensor, weight: Tensor) -> Tensor:
    """Return the cosine (batch, rows) of each embedding (batch, D) to each row of a weight.

    One matrix product, in the precision of the embedding.
    """
    directions = F.normalize(weight.to(embedding.dtype))
    return F.linear(F.normalize(embedding), directions)


def as_targets(labels: Tensor, logits: Tensor) -> Tensor:
    """Return labels as cross-entropy takes them: soft ones in the precision of the logits."""
    return labels.to(logits.dtype) if labels.is_floating_point() else labels


def shares(labels: Tensor, logits: Tensor) -> Tensor:
    """Return each class's share of each clip, (batch, C), of integer or soft labels."""
    if labels.is_floating_point():
        return labels.to(logits.dtype)
    return F.one_hot(labels, logits.shape[1]).to(logits.dtype)


def check_positive(**values: float) -> None:
    """Raise ValueError for an option that is not greater than 0."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"head_options: {name}={value} must be greater than 0.")


__all__ = ["Head", "HeadOutput", "as_targets", "check_positive", "cosines", "shares"]
