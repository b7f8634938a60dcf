"""The length of an embedding, for models whose embedding is zero where a clip is normal."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .detector_base import Decomposition, ReferenceDetector


class NormDetector(ReferenceDetector):
    """Length of the embedding, averaged over views and bands; the references decide nothing.

    For models whose embedding is what they could not explain of a clip (a residual, or their own
    anomaly score as a vector of one): what is normal they have learned themselves, and it lies at
    zero. The references are kept for `nearest`, which says whose embeddings lie next to a clip's.

    Args:
        views: The views that are scored; None takes all.

    See Also:
        MahalanobisDetector, where it is the references that say what is normal.
    """

    def __init__(self, *, views: Sequence[int] | None = None) -> None:
        super().__init__(metric="euclidean", views=views)

    def leave_one_out(self) -> Tensor:
        """Return (N,) float32: the score of each reference, on which the others have no bearing.

        Raises:
            NotFittedError: `fit` was not called.
            ValueError: There is only one reference.
        """
        references, _, rows = self._kept()
        self._two_or_more()
        scores = torch.empty(len(rows))
        scores[rows] = self._score(references).float()
        return scores

    def _learn(self) -> None:
        """Learn nothing."""

    def _score(self, query: Tensor) -> Tensor:
        lengths: Tensor = query.double().norm(dim=-1)  # (M, views, bands)
        return lengths.mean(dim=(1, 2))

    def _decompose(self, query: Tensor) -> Decomposition:
        clip = query.double()  # (1, views, bands, size)
        direction = torch.nn.functional.normalize(clip, dim=-1) / clip[0, :, :, 0].numel()
        return Decomposition(torch.zeros_like(clip), direction)


__all__ = ["NormDetector"]
