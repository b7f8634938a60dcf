"""ArcFace, and ArcFace with sub-centres."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from .head_base import Head, as_targets, check_positive, cosines


class ArcFaceHead(Head):
    """Additive angular margin classifier (Deng et al., 2019), with sub-centres (Deng et al., 2020).

    Its loss of integer labels is the softmax cross-entropy; of soft ones the binary cross-entropy
    of each class, its mean over classes and clips.

    Args:
        embedding_size: D, size of an embedding.
        num_classes: C, number of proxy classes.
        num_subcenters: K, centres per class, or a list of C such numbers; a class answers with its
            nearest one. The centres of all classes are one matrix product.
        margin: m, in radians. It applies to a clip's own class only.
        scale: s, inverse temperature of the softmax.

    Requirements:
        As `Head`'s. The logits of soft labels y are s (y cos(t + m) + (1 - y) cos t).

    See Also:
        AdaCosHead, without margin and with a scale that sets itself: take it where classes are very
        unequal in size.
    """

    def __init__(
        self,
        embedding_size: int,
        num_classes: int,
        *,
        num_subcenters: int | list[int] = 1,
        margin: float = 0.5,
        scale: float = 30.0,
    ) -> None:
        super().__init__(num_classes)
        counts = num_subcenters
        self.subcenters = [counts] * num_classes if isinstance(counts, int) else list(counts)
        if len(self.subcenters) != num_classes or min(self.subcenters) < 1:
            raise ValueError(
                f"head_options: num_subcenters={num_subcenters} must be a number greater than 0, "
                f"or one for each of {num_classes} classes."
            )
        check_positive(scale=scale)
        self.margin = margin
        self.scale = scale
        # The K centres of a class are neighbouring rows.
        self.weight = nn.Parameter(torch.empty(sum(self.subcenters), embedding_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the centres anew."""
        init.xavier_uniform_(self.weight)

    def logits(self, embedding: Tensor, labels: Tensor | None) -> Tensor:
        """Return s cos t, (batch, C); with labels, s cos(t + m) for a clip's own class."""
        cosine = self.cosine(embedding)
        if labels is None:
            return self.scale * cosine
        if labels.is_floating_point():
            shifted = torch.lerp(cosine, self.add_margin(cosine), labels.to(cosine.dtype))
        else:
            target = cosine.gather(1, labels[:, None])  # (B, 1)
            shifted = cosine.scatter(1, labels[:, None], self.add_margin(target))
        return self.scale * shifted

    def cosine(self, embedding: Tensor) -> Tensor:
        """Return the cosine (batch, C) of each embedding to the nearest centre of each class."""
        every = cosines(embedding, self.weight)  # (B, all centres)
        if len(set(self.subcenters)) == 1:
            nearest: Tensor = every.unflatten(1, (self.num_classes, -1)).amax(dim=2)
            return nearest
        counts = torch.tensor(self.subcenters, device=every.device)
        owner = torch.arange(self.num_classes, device=every.device).repeat_interleave(counts)
        nearest = every.new_empty(len(every), self.num_classes)
        return nearest.scatter_reduce(
            1, owner.expand_as(every), every, reduce="amax", include_self=False
        )

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
            logits: (batch, C), made with the same labels.
            labels: (batch,) int64: softmax cross-entropy. (batch, C) soft: binary cross-entropy of
                each class, its mean over classes and clips.
        """
        if labels.is_floating_point():
            return F.binary_cross_entropy_with_logits(logits, as_targets(labels, logits))
        return super().loss(logits, labels)


__all__ = ["ArcFaceHead"]
