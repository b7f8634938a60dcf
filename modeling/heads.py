"""Heads that train an embedding by telling apart proxy classes of normal clips."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ArcFaceHead(nn.Module):
    """Additive angular margin classifier (Deng et al., 2019), with sub-centres (Deng et al., 2020).

    Computes in float32, whatever the precision around it: two bfloat16 directions half a degree
    apart can be one and the same.

    Args:
        embedding_size: D, size of an embedding.
        num_classes: C, number of proxy classes.
        num_subcenters: K, centres per class; a class answers with its nearest one.
        margin: m, in radians. It applies to a clip's own class only.
        scale: s, inverse temperature of the softmax.

    Requirements:
        Labels are int64 (batch,), or soft ones (batch, C) such as mixup makes.
    """

    def __init__(
        self,
        embedding_size: int,
        num_classes: int,
        *,
        num_subcenters: int = 1,
        margin: float = 0.5,
        scale: float = 30.0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_subcenters = num_subcenters
        self.margin = margin
        self.scale = scale
        # The K centres of a class are neighbouring rows.
        self.weight = nn.Parameter(torch.empty(num_classes * num_subcenters, embedding_size))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, embedding: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return logits (batch, C), float32 (float64 if the embedding is).

        Args:
            embedding: (batch, D), of any length; it is normalised here.
            labels: (batch,) int64, or (batch, C) floating in [0, 1]. With soft labels y the logits
                are s (y cos(t + m) + (1 - y) cos t). Without labels
                no margin is applied, as at inference.

        Raises:
            ValueError: A label is no class, or a soft one no share, or their shape is wrong.
        """
        with torch.autocast(embedding.device.type, enabled=False):
            cosine = self.cosine(embedding)
            if labels is None:
                return self.scale * cosine
            self.check_labels(cosine, labels)
            if labels.is_floating_point():
                shifted = torch.lerp(cosine, self.add_margin(cosine), labels.to(cosine.dtype))
            else:
                target = cosine.gather(1, labels[:, None])  # (B, 1)
                shifted = cosine.scatter(1, labels[:, None], self.add_margin(target))
            return self.scale * shifted

    def cosine(self, embedding: Tensor) -> Tensor:
        """Return the cosine (batch, C) of each embedding to the nearest centre of each class."""
        dtype = torch.promote_types(embedding.dtype, torch.float32)
        directions = F.normalize(embedding.to(dtype)), F.normalize(self.weight.to(dtype))
        cosine: Tensor = F.linear(*directions)  # (B, C * K)
        shape = (self.num_classes, self.num_subcenters)
        nearest: Tensor = cosine.unflatten(1, shape).amax(dim=2)
        return nearest

    def add_margin(self, cosine: Tensor) -> Tensor:
        """Return cos(t + m) of cos t, continued by a line where it would rise again."""
        # Clamp before the root, whose slope at 0 is infinite.
        sine = (1 - cosine.square()).clamp_min(1e-12).sqrt()
        shifted = cosine * math.cos(self.margin) - sine * math.sin(self.margin)
        # Beyond t = pi - m, cos(t + m) rises again; a straight line keeps the logit falling.
        line = cosine - self.margin * math.sin(self.margin)
        return torch.where(cosine > -math.cos(self.margin), shifted, line)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of a batch, a scalar.

        Args:
            logits: (batch, C), of `forward` with the same labels.
            labels: (batch,) int64: softmax cross-entropy. (batch, C) soft: binary cross-entropy of
                each class, its mean over classes and clips.
        """
        if labels.is_floating_point():
            return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        return F.cross_entropy(logits, labels)

    def check_labels(self, cosine: Tensor, labels: Tensor) -> None:
        """Raise ValueError unless the labels fit `cosine`, (batch, C)."""
        soft = labels.is_floating_point()
        expected = cosine.shape if soft else cosine.shape[:1]
        if labels.shape != expected:
            raise ValueError(
                f"{'Soft' if soft else 'Integer'} labels have shape {tuple(labels.shape)}, "
                f"expected {tuple(expected)}."
            )
        low, high = 0, 1 if soft else self.num_classes - 1
        if labels.numel() and not bool(((labels >= low) & (labels <= high)).all()):
            raise ValueError(
                f"Labels range from {labels.min().item()} to {labels.max().item()}, but "
                f"{'soft ones are shares' if soft else 'this head knows classes'} from 0 to {high}."
                " Does num_labels match the classes of the training clips?"
            )


HEADS = {"arcface": ArcFaceHead}  # name in AsdConfig -> constructor

__all__ = ["HEADS", "ArcFaceHead"]
