"""Mahalanobis distance: how many deviations of its domain a clip lies from the domain's mean."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from .detector_base import Decomposition, check_choice
from .model_detector import ModelDetector
from .neighbor_search import Metric

ShrinkTo = Literal["identity", "largest"]

# Least share of the shrinkage target, which keeps any covariance invertible.
LEAST_SHRINKAGE = 1e-6
LEAST_VARIANCE = 1e-14  # of the mean square


class MahalanobisDetector(ModelDetector):
    """r' C^-1 r, r the clip minus the mean and C the covariance of a domain; the smallest counts.

    With `per_domain` this is the official baseline's "selective" distance, otherwise the pooled
    one. An embedding has more dimensions than a domain has clips, ten target clips above all, so C
    is a share s of a simpler matrix T and 1 - s of the covariance as it is. By default s is the
    estimate that comes closest to the true covariance (Ledoit and Wolf, 2004, for T = the identity
    times the mean variance; their formula with T held fixed for the other one).

    The state has a (size, size) matrix for each domain, view and band.

    Args:
        per_domain: Whether each domain has its own mean and covariance.
        shrinkage: s in (0, 1]; None estimates it.
        shrink_to: T: "identity" or "largest", the shrunk covariance of the largest domain, which
            lends the few target clips the directions in which source clips vary.
        normalize: Whether embeddings are brought to length 1 first.
        views: The views that are scored; None takes all.

    See Also:
        GmmDetector, for a domain of several conditions; KnnDetector, which assumes no shape.
    """

    def __init__(
        self,
        *,
        per_domain: bool = True,
        shrinkage: float | None = None,
        shrink_to: ShrinkTo = "identity",
        normalize: bool = False,
        views: Sequence[int] | None = None,
    ) -> None:
        metric: Metric = "unit_euclidean" if normalize else "euclidean"
        super().__init__(metric=metric, per_domain=per_domain, views=views)
        check_choice("shrink_to", shrink_to, get_args(ShrinkTo))
        if shrinkage is not None and not 0 < shrinkage <= 1:
            raise ValueError(f"shrinkage={shrinkage} must lie in (0, 1]; None estimates it.")
        self.shrinkage = shrinkage
        self.shrink_to: ShrinkTo = shrink_to

    def _fit_part(self, clips: Tensor, target: Tensor, largest: Tensor) -> dict[str, Tensor]:  # noqa: ARG002  the domain is no matter
        covariance = shrunk_covariance(clips.double(), shrinkage=self.shrinkage)
        if self.shrink_to == "largest" and not torch.equal(clips, largest):
            simpler = shrunk_covariance(largest.double(), shrinkage=self.shrinkage)
            covariance = shrunk_covariance(
                clips.double(), shrinkage=self.shrinkage, towards=simpler
            )
        factor = torch.linalg.cholesky(covariance)
        whitening = torch.linalg.solve_triangular(
            factor, torch.eye(len(factor), dtype=factor.dtype), upper=False
        )
        return {"mean": clips.double().mean(dim=0), "whitening": whitening.float()}

    def _score_part(self, model: dict[str, Tensor], query: Tensor, clips: Tensor) -> Tensor:  # noqa: ARG002  the model is enough
        residual = query - model["mean"]
        return (residual @ model["whitening"].double().T).square().sum(dim=1)

    def _decompose_part(self, model: dict[str, Tensor], clip: Tensor) -> Decomposition:
        whitening = model["whitening"].double()
        return Decomposition(
            model["mean"],
            whitening.T @ (whitening @ (clip - model["mean"])),  # C^-1 r
        )


def shrunk_covariance(
    clips: Tensor, *, shrinkage: float | None = None, towards: Tensor | None = None
) -> Tensor:
    """Return (1 - s) S + s T, (size, size), S being the covariance (divided by n) of n clips.

    Args:
        clips: (n, size) float64.
        shrinkage: s; None takes min(1, b / d), with d = |S - T|^2 and b = the mean over clips of
            |x x' - S|^2, divided by n: the expected error of S (Frobenius norms).
        towards: T; None takes the mean variance times the identity, the variance being at least
            that of rounding to float32, for clips that do not vary at all.
    """
    count, size = clips.shape
    least = LEAST_VARIANCE * clips.square().mean()
    clips = clips - clips.mean(dim=0)
    covariance = clips.T @ clips / count
    if towards is None:
        variance = covariance.diagonal().mean().clamp_min(least if least > 0 else 1.0)
        towards = variance * torch.eye(size, dtype=clips.dtype)
    if shrinkage is None:
        distance = (covariance - towards).square().sum()
        fourth = clips.square().sum(dim=1).square().mean()
        error = (fourth - covariance.square().sum()).clamp_min(0) / count
        shrinkage = float((error / distance).clamp(LEAST_SHRINKAGE, 1)) if distance > 0 else 1.0
    return (1 - shrinkage) * covariance + shrinkage * towards


__all__ = ["MahalanobisDetector", "shrunk_covariance"]
