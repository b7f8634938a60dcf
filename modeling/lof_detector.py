"""Local outlier factor: how much sparser it is around a clip than around its neighbours."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .detector_base import check_at_least
from .model_detector import ModelDetector
from .neighbor_search import Metric, ReferenceIndex


class LofDetector(ModelDetector):
    """Local outlier factor of a new clip among the references (Breunig et al., 2000).

    The reachability of a from b is the distance between them, but at least b's distance to its own
    K-th neighbour; density is 1 / the mean reachability from the K nearest; the score is the mean
    density of the K nearest references over the clip's own, about 1 inside. The values are those of
    scikit-learn's LocalOutlierFactor(novelty=True), with the sign turned.

    Args:
        num_neighbors: K; all others of a domain, if there are fewer.
        metric: Of the distances.
        per_domain: Whether source and target are searched apart.
        views: The views that are scored; None takes all.

    See Also:
        KnnDetector with normalization="local_density", which takes the density of one reference.
    """

    def __init__(
        self,
        *,
        num_neighbors: int = 20,
        metric: Metric = "cosine",
        per_domain: bool = False,
        views: Sequence[int] | None = None,
    ) -> None:
        super().__init__(metric=metric, per_domain=per_domain, views=views)
        check_at_least("num_neighbors", num_neighbors, 1)
        self.num_neighbors = num_neighbors

    def _fit_part(self, clips: Tensor, target: Tensor, largest: Tensor) -> dict[str, Tensor]:  # noqa: ARG002  the domain is no matter
        if len(clips) == 1:  # no neighbour: the score will be the distance to this clip
            alone = torch.zeros(1, dtype=torch.float64)
            return {"reach": alone, "density": alone + 1}
        k = min(self.num_neighbors, len(clips) - 1)
        one = clips[:, None, None]
        found, distance = ReferenceIndex(one, self.metric).nearest(
            one, k, hidden=lambda rows, columns: rows[:, None] == columns
        )
        reach = distance[:, -1]
        return {"reach": reach, "density": _density(found, distance, reach)}

    def _score_part(self, model: dict[str, Tensor], query: Tensor, clips: Tensor) -> Tensor:
        k = min(self.num_neighbors, max(1, len(clips) - 1))
        index = ReferenceIndex(clips[:, None, None], self.metric)
        found, distance = index.nearest(query[:, None, None], k)
        own = _density(found, distance, model["reach"])
        return model["density"][found].mean(dim=1) / own


def _density(found: Tensor, distance: Tensor, reach: Tensor) -> Tensor:
    """Return the density (M,) from indices and distances (M, K) of neighbours and their reach."""
    reachability = torch.maximum(distance, reach[found])
    return 1 / (reachability.mean(dim=1) + 1e-10)


__all__ = ["LofDetector"]
