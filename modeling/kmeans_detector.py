"""k-means: the distance to the nearest of a few centres, and to any target clip."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .detector_base import Decomposition, check_at_least, content_order
from .model_detector import ModelDetector


class KmeansDetector(ModelDetector):
    """Half the squared distance to the nearest centre of the source clips or to a target clip.

    Embeddings have length 1, so that for a target clip this is the cosine distance. The centres are
    those of k-means over all clips that are not of the target domain, whose few clips stand for
    themselves; without any other clip they alone do (Wilkinghoff, ICASSP 2023).

    Fitting needs scikit-learn, scoring does not.

    Args:
        num_centers: Of each view and band; as many as there are different clips, if those are
            fewer.
        normalize_centers: Whether centres are brought to length 1 again, as ASDKit does; it was
            found to lower the scores' quality.
        seed: Of the first centres. They are drawn by the clips' content, not by their order.
        views: The views that are scored; None takes all.

    See Also:
        KnnDetector, which keeps every clip: take it unless the bank is too large for that.
    """

    def __init__(
        self,
        *,
        num_centers: int = 16,
        normalize_centers: bool = False,
        seed: int = 0,
        views: Sequence[int] | None = None,
    ) -> None:
        super().__init__(metric="cosine", per_domain=False, views=views)
        check_at_least("num_centers", num_centers, 1)
        self.num_centers = num_centers
        self.normalize_centers = normalize_centers
        self.seed = seed

    def _fit_part(self, clips: Tensor, target: Tensor, largest: Tensor) -> dict[str, Tensor]:  # noqa: ARG002  one pool
        try:
            from sklearn.cluster import KMeans
        except ImportError as error:
            raise ImportError(
                "KmeansDetector.fit needs scikit-learn: pip install scikit-learn."
            ) from error
        themselves, clustered = clips[target].double(), clips[~target]
        if not len(clustered):
            return {"centers": themselves}
        clustered = clustered[content_order(clustered)].double()
        # A centre per clip at most; equal clips would leave centres empty.
        count = min(self.num_centers, len(clustered.unique(dim=0)))
        kmeans = KMeans(n_clusters=count, n_init=10, random_state=self.seed)
        centers = torch.from_numpy(kmeans.fit(clustered.numpy()).cluster_centers_)
        if self.normalize_centers:
            centers = torch.nn.functional.normalize(centers, dim=-1)
        missing = min(self.num_centers, len(clustered)) - count
        centers = torch.cat([centers, centers[:1].expand(missing, -1)])  # as many in every band
        return {"centers": torch.cat([centers, themselves])}

    def _score_part(self, model: dict[str, Tensor], query: Tensor, clips: Tensor) -> Tensor:  # noqa: ARG002  the model is enough
        exact = "donot_use_mm_for_euclid_dist"
        return torch.cdist(query, model["centers"], compute_mode=exact).amin(dim=1).square() / 2

    def _decompose_part(self, model: dict[str, Tensor], clip: Tensor) -> Decomposition:
        away = clip - model["centers"]
        nearest = int(away.norm(dim=1).argmin())
        return Decomposition(model["centers"][nearest], away[nearest] / 2)


__all__ = ["KmeansDetector"]
