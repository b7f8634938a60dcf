"""One-stage supervised contrastive learning (OS-SCL): perturbed features, two losses on them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .arcface_head import ArcFaceHead
from .head_base import Head, HeadOutput, check_positive


class ContrastiveHead(Head):
    """ArcFace and a supervised contrastive loss, both on perturbed embeddings (OS-SCL).

    Huang et al. (2025): L = CE(ArcFace(z), y) + SupCon(z, y), z the feature of a small network, the
    feature perturbation head. With V views, V such networks with weights of their own see each
    embedding; ArcFace takes the first one's feature, and so do the logits of inference, while the
    contrast is among those of all.

    Args:
        embedding_size: D, size of an embedding and of its features.
        num_classes: C, number of proxy classes.
        num_subcenters: ArcFace's, K centres per class or a list of C numbers.
        margin: ArcFace's m, in radians.
        scale: ArcFace's s.
        temperature: tau of the contrastive loss.
        base_temperature: tau_b; the contrastive loss counts tau / tau_b times.
        num_views: V, features per clip: 1, as in the authors' code, or 2.

    Requirements:
        Labels as `Head`'s. Soft ones mix the cross-entropies, sum_c y_c CE(., c); margin and
        contrast go by the class of the largest share. In training, batch normalisation needs two
        clips at least. Positives are found among the clips of a process.

    See Also:
        ArcFaceHead, the same without contrast and perturbation: take it where batches rarely hold
        two clips of a class.
    """

    def __init__(
        self,
        embedding_size: int,
        num_classes: int,
        *,
        num_subcenters: int | list[int] = 1,
        margin: float = 0.2,
        scale: float = 30.0,
        temperature: float = 0.04,
        base_temperature: float = 0.07,
        num_views: int = 1,
    ) -> None:
        super().__init__(num_classes)
        check_positive(temperature=temperature, base_temperature=base_temperature)
        if num_views not in (1, 2):
            raise ValueError(f"head_options: num_views={num_views} must be 1 or 2.")
        self.temperature = temperature
        self.base_temperature = base_temperature
        self.perturbations = nn.ModuleList(Perturbation(embedding_size) for _ in range(num_views))
        self.arcface = ArcFaceHead(
            embedding_size, num_classes, num_subcenters=num_subcenters, margin=margin, scale=scale
        )

    def classify(self, embedding: Tensor, labels: Tensor | None) -> HeadOutput:
        """Return the logits of the first view and, with labels, the sum of both losses."""
        if labels is None:
            return HeadOutput(self.arcface.logits(self.perturbations[0](embedding), None), None)
        views = torch.stack([perturb(embedding) for perturb in self.perturbations])  # (V, B, D)
        classes = labels.argmax(dim=1) if labels.is_floating_point() else labels
        logits = self.arcface.logits(views[0], classes)
        contrastive = supervised_contrastive_loss(
            views.flatten(0, 1),
            classes.repeat(len(views)),
            temperature=self.temperature,
            base_temperature=self.base_temperature,
        )
        return HeadOutput(logits, self.loss(logits, labels) + contrastive)


class Perturbation(nn.Module):
    """The feature perturbation head of OS-SCL: down to D / 2 and up again.

    Args:
        size: D, of an embedding.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        width = max(1, size // 2)
        self.down = nn.Linear(size, width)
        self.down_norm = nn.BatchNorm1d(width)
        self.up = nn.Linear(width, size)
        self.up_norm = nn.BatchNorm1d(size)

    def forward(self, embedding: Tensor) -> Tensor:
        """Return features (batch, D) of embeddings (batch, D) in the embeddings' precision.

        It computes in that of its weights.
        """
        if self.training and len(embedding) < 2:
            raise ValueError(
                f"A training batch holds {len(embedding)} clip, but the batch normalisation of "
                "this head needs two per process. Raise train_batch_size, or take head='arcface'."
            )
        hidden = embedding.to(self.down.weight.dtype)
        hidden = self.down_norm(F.relu(self.down(hidden)))
        feature: Tensor = self.up_norm(F.relu(self.up(hidden)))
        return feature.to(embedding.dtype)


def supervised_contrastive_loss(
    features: Tensor, labels: Tensor, *, temperature: float, base_temperature: float
) -> Tensor:
    """Return the mean over features of how badly each picks out those of its own class.

    Khosla et al. (2020), "L_out": each feature's mean of -ln(e^(z.p / tau) / sum_a e^(z.a / tau))
    over the others p of its class, a running over all others, times tau / tau_b. A feature that is
    the only one of its class contributes 0.

    Args:
        features: (N, D), of any length; they are normalised here.
        labels: (N,) int64.
        temperature: tau.
        base_temperature: tau_b.
    """
    unit = F.normalize(features)
    logits = unit @ unit.T / temperature  # (N, N)
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    # Not -inf, whose difference with itself is NaN: there may be no other.
    others = logits.masked_fill(itself, torch.finfo(logits.dtype).min)
    log_share = logits - others.logsumexp(dim=1, keepdim=True)
    positive = (labels[:, None] == labels[None]) & ~itself
    mean = log_share.where(positive, 0.0).sum(dim=1) / positive.sum(dim=1).clamp_min(1)
    return -(temperature / base_temperature) * mean.mean()


__all__ = ["ContrastiveHead", "supervised_contrastive_loss"]
