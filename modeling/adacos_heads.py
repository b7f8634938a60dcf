"""Heads without a margin whose scale sets itself: AdaCos, sub-cluster AdaCos, AdaProj."""

import math

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from .head_base import Head, check_positive, cosines, shares


class AdaptiveScaleHead(Head):
    """What AdaCos heads share: vectors to compare with, and a scale that may follow the training.

    The scale is a buffer, so that a checkpoint holds it. Only a call with labels in training mode
    moves it, before the batch is scaled; the clips of all processes count alike.

    Args:
        embedding_size: D, size of an embedding.
        num_classes: C, number of proxy classes.
        vectors_per_class: Rows of the weight that belong to a class; they are neighbours.
        num_rivals: How many logits a clip's own one competes with; it sets the first scale.
        adaptive_scale: Whether the scale follows the training.
        min_scale: The scale's floor. For two classes sqrt(2) ln(C - 1) is 0, and every loss ln 2.

    Attributes:
        scale: s, a scalar buffer.
    """

    scale: Tensor
    weight: Tensor

    def __init__(
        self,
        embedding_size: int,
        num_classes: int,
        *,
        vectors_per_class: int,
        num_rivals: int,
        adaptive_scale: bool,
        min_scale: float,
    ) -> None:
        super().__init__(num_classes)
        check_positive(min_scale=min_scale)
        self.adaptive_scale = adaptive_scale
        self.min_scale = min_scale
        self.first_scale = max(min_scale, math.sqrt(2) * math.log(max(1, num_rivals)))
        self.register_buffer("scale", torch.tensor(self.first_scale))
        rows = num_classes * vectors_per_class
        self.weight = nn.Parameter(torch.empty(rows, embedding_size))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the vectors anew, and start from the first scale."""
        init.xavier_uniform_(self.weight)
        init.constant_(self.scale, self.first_scale)

    def logits(self, embedding: Tensor, labels: Tensor | None) -> Tensor:
        """Return s cos t, (batch, C)."""
        cosine = self.cosine(embedding)
        if labels is not None and self.moves:
            own, seen = shares(labels, cosine), cosine.detach()
            # e^(s cos) counts 1 - y times.
            self.move_scale(self.scale * seen + (1 - own).log(), (own * angles(seen)).sum(dim=1))
        return self.scale_for(cosine) * cosine

    def cosine(self, embedding: Tensor) -> Tensor:
        """Return the cosine (batch, C) of each embedding to each class."""
        raise NotImplementedError

    @property
    def moves(self) -> bool:
        """Whether a call with labels moves the scale."""
        return self.adaptive_scale and self.training

    @torch.no_grad()
    def move_scale(self, rivals: Tensor, own_angle: Tensor) -> None:
        """Move the scale by a batch: s <- ln(B) / cos(min(pi/4, median angle)).

        Zhang et al. (2019): B is the mean over clips of the sum of e^(s cos) over what a clip's own
        class competes with.

        Args:
            rivals: (batch, any), the exponents s cos; -inf leaves one out.
            own_angle: (batch,), from each clip to its own class, in radians.
        """
        seen = gathered(torch.stack([rivals.logsumexp(dim=1), own_angle]))  # (2, clips)
        log_mean = seen[0].logsumexp(dim=0) - math.log(seen.shape[1])
        angle = seen[1].median().clamp_max(math.pi / 4)
        self.scale.copy_((log_mean / angle.cos()).clamp_min(self.min_scale))

    def scale_for(self, cosine: Tensor) -> Tensor:
        """Return the scale in the precision of the cosines."""
        # A copy: the next batch moves the buffer in place, maybe before this one's backward.
        return self.scale.to(cosine.dtype, copy=True)


class AdaCosHead(AdaptiveScaleHead):
    """Softmax of scaled cosines, without margin, whose scale sets itself (Zhang et al., 2019).

    Args:
        embedding_size: D, size of an embedding.
        num_classes: C, number of proxy classes.
        adaptive_scale: Whether the scale follows the training ("dynamic AdaCos"), or stays
            sqrt(2) ln(C - 1) ("fixed").
        min_scale: Floor of the scale; it is what two or three classes start from.

    Requirements:
        As `Head`'s. A soft label's angle is the mean of its classes' angles under their shares.

    See Also:
        ArcFaceHead, which parts classes by a margin. SubclusterAdaCosHead, where a class has
        several modes.
    """

    def __init__(
        self,
        embedding_size: int,
        num_classes: int,
        *,
        adaptive_scale: bool = True,
        min_scale: float = 1.0,
    ) -> None:
        super().__init__(
            embedding_size,
            num_classes,
            vectors_per_class=1,
            num_rivals=num_classes - 1,
            adaptive_scale=adaptive_scale,
            min_scale=min_scale,
        )

    def cosine(self, embedding: Tensor) -> Tensor:
        """Return the cosine (batch, C) of each embedding to the centre of each class."""
        return cosines(embedding, self.weight)


class AdaProjHead(AdaptiveScaleHead):
    """AdaCos to a subspace per class instead of a centre: AdaProj (Wilkinghoff, 2024).

    A class answers with the cosine between the embedding x and p = sum_k <x, w_k> w_k over its K
    unit vectors w_k. As in the author's code, nothing makes these orthogonal: p is the projection
    of x only where they are.

    Args:
        embedding_size: D, size of an embedding.
        num_classes: C, number of proxy classes.
        num_basis_vectors: K, vectors per class; fewer than D, as D of them span all embeddings.
        adaptive_scale: As `AdaCosHead`'s.
        min_scale: As `AdaCosHead`'s.

    Requirements:
        As `AdaCosHead`'s.

    See Also:
        SubclusterAdaCosHead, with centres instead of a subspace.
    """

    def __init__(
        self,
        embedding_size: int,
        num_classes: int,
        *,
        num_basis_vectors: int = 32,
        adaptive_scale: bool = True,
        min_scale: float = 1.0,
    ) -> None:
        if not 0 < num_basis_vectors < embedding_size:
            raise ValueError(
                f"head_options: num_basis_vectors={num_basis_vectors} must be from 1 to "
                f"{embedding_size - 1}: more would span all embeddings, which have size "
                f"{embedding_size}."
            )
        super().__init__(
            embedding_size,
            num_classes,
            vectors_per_class=num_basis_vectors,
            num_rivals=num_classes - 1,
            adaptive_scale=adaptive_scale,
            min_scale=min_scale,
        )
        self.num_basis_vectors = num_basis_vectors

    def cosine(self, embedding: Tensor) -> Tensor:
        """Return the cosine (batch, C), never negative, of each embedding to its p."""
        shape = (self.num_classes, self.num_basis_vectors)
        inner = cosines(embedding, self.weight).unflatten(1, shape)  # (B, C, K): <x, w_k>
        basis = F.normalize(self.weight.to(embedding.dtype)).unflatten(0, shape)  # (C, K, D)
        gram = basis @ basis.mT  # (C, K, K)
        square = inner.square().sum(dim=2)  # <x, p>
        # |p|^2; clamp before the root, whose slope at 0 is infinite.
        length = torch.einsum("bck,ckl,bcl->bc", inner, gram, inner).clamp_min(1e-12).sqrt()
        cosine: Tensor = square / length
        return cosine


class SubclusterAdaCosHead(AdaptiveScaleHead):
    """AdaCos with several centres per class: sub-cluster AdaCos (Wilkinghoff, 2021).

    A softmax over all C * S centres, whose probabilities are summed within each class:
    L = -sum_c y_c ln sum_s p_cs. A class's logit is ln sum_s e^(s cos t_cs), the same in one step.

    Args:
        embedding_size: D, size of an embedding.
        num_classes: C, number of proxy classes.
        num_subclusters: S, centres per class.
        trainable_centers: Whether the centres are learnt; else they stay where they were drawn, a
            buffer.
        adaptive_scale: Whether the scale follows the training, or stays sqrt(2) ln(C S - 1). As
            in the author's code, B is then the sum over all centres, a clip's own ones too, and a
            clip's angle is the sum of those to the S centres of its class, which is above pi/4
            nearly always: the divisor is cos(pi/4).
        min_scale: Floor of the scale.

    Requirements:
        As `Head`'s.

    See Also:
        ArcFaceHead with num_subcenters, where only the nearest centre of a class counts.
    """

    def __init__(
        self,
        embedding_size: int,
        num_classes: int,
        *,
        num_subclusters: int = 16,
        trainable_centers: bool = True,
        adaptive_scale: bool = False,
        min_scale: float = 1.0,
    ) -> None:
        check_positive(num_subclusters=num_subclusters)
        super().__init__(
            embedding_size,
            num_classes,
            vectors_per_class=num_subclusters,
            num_rivals=num_classes * num_subclusters - 1,
            adaptive_scale=adaptive_scale,
            min_scale=min_scale,
        )
        self.num_subclusters = num_subclusters
        if not trainable_centers:  # a frozen parameter would train again after from_pretrained
            centers = self.weight.detach()
            del self.weight
            self.register_buffer("weight", centers)

    def logits(self, embedding: Tensor, labels: Tensor | None) -> Tensor:
        """Return ln sum_s e^(s cos t_cs), (batch, C); their softmax sums within the classes."""
        shape = (self.num_classes, self.num_subclusters)
        cosine = cosines(embedding, self.weight).unflatten(1, shape)  # (B, C, S)
        if labels is not None and self.moves:
            own, seen = shares(labels, cosine)[..., None], cosine.detach()  # (B, C, 1), (B, C, S)
            angle = (own * angles(seen)).sum(dim=(1, 2))
            self.move_scale((self.scale * seen).flatten(1), angle)
        logits: Tensor = (self.scale_for(cosine) * cosine).logsumexp(dim=2)
        return logits


def angles(cosine: Tensor) -> Tensor:
    """Return the angles of cosines, in radians. For no gradient: it is infinite at 0 and pi."""
    return cosine.clamp(-1, 1).acos()


def gathered(values: Tensor) -> Tensor:
    """Return (rows, batch) values beside those of the other processes, (rows, all clips)."""
    if not (dist.is_available() and dist.is_initialized()):
        return values
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts, dim=1)


__all__ = ["AdaCosHead", "AdaProjHead", "AdaptiveScaleHead", "SubclusterAdaCosHead"]
