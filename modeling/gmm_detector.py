"""Gaussian mixture: the negative log-likelihood of a clip."""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from .detector_base import check_at_least, check_choice, content_order
from .model_detector import ModelDetector
from .neighbor_search import Metric

CovarianceType = Literal["diag", "full"]


class GmmDetector(ModelDetector):
    """Negative log-likelihood (natural logarithm) under a mixture of Gaussians of the references.

    The mixture is fitted by scikit-learn's EM, and scored here; fitting needs scikit-learn, scoring
    does not. A clip is as likely as its mixture says, so with `per_domain` a domain of ten clips
    has a narrow mixture that only its own clips can reach; the default is one mixture for all.

    Args:
        num_components: Gaussians per mixture; one per different clip, if those are fewer.
        covariance_type: "diag" or "full". Full ones need many more clips than dimensions.
        regularization: Added to every variance: in squares of the embedding's unit, so smaller than
            the variances, and not much smaller where clips are few.
        per_domain: Whether each domain has a mixture of its own.
        normalize: Whether embeddings are brought to length 1 first.
        seed: Of the first means. They are drawn by the clips' content, not by their order.
        views: The views that are scored; None takes all.

    See Also:
        MahalanobisDetector, which is one full Gaussian with a covariance made for few clips.
    """

    def __init__(
        self,
        *,
        num_components: int = 2,
        covariance_type: CovarianceType = "diag",
        regularization: float = 1e-3,
        per_domain: bool = False,
        normalize: bool = False,
        seed: int = 0,
        views: Sequence[int] | None = None,
    ) -> None:
        metric: Metric = "unit_euclidean" if normalize else "euclidean"
        super().__init__(metric=metric, per_domain=per_domain, views=views)
        check_choice("covariance_type", covariance_type, get_args(CovarianceType))
        check_at_least("num_components", num_components, 1)
        if not regularization > 0:
            raise ValueError(f"regularization={regularization} must be above 0.")
        self.num_components = num_components
        self.covariance_type: CovarianceType = covariance_type
        self.regularization = regularization
        self.seed = seed

    def _fit_part(self, clips: Tensor, target: Tensor, largest: Tensor) -> dict[str, Tensor]:  # noqa: ARG002  the domain is no matter
        try:
            from sklearn.mixture import GaussianMixture
        except ImportError as error:
            raise ImportError(
                "GmmDetector.fit needs scikit-learn: pip install scikit-learn."
            ) from error
        ordered = clips[content_order(clips)].double()
        # Equal clips would leave Gaussians empty.
        count = min(self.num_components, len(ordered.unique(dim=0)))
        if len(ordered) == 1:
            ordered = ordered.expand(2, -1)  # scikit-learn takes no single clip
        mixture = GaussianMixture(
            count,
            covariance_type=self.covariance_type,
            reg_covar=self.regularization,
            random_state=self.seed,
            max_iter=200,
        ).fit(ordered.numpy())
        model = {
            "log_weights": torch.from_numpy(mixture.weights_).log(),
            "means": torch.from_numpy(mixture.means_),
            # Of each Gaussian: 1 / standard deviations, or the factor F of C^-1 = F F'
            "precision_factors": torch.from_numpy(mixture.precisions_cholesky_).contiguous(),
        }
        missing = min(self.num_components, len(clips)) - count
        if missing:  # as many in every band: those of weight 0 change nothing
            for name, values in model.items():
                model[name] = torch.cat([values, values[:1].expand(missing, *values.shape[1:])])
            model["log_weights"][count:] = -torch.inf
        return model

    def _score_part(self, model: dict[str, Tensor], query: Tensor, clips: Tensor) -> Tensor:  # noqa: ARG002  the model is enough
        by_component = []
        for mean, factor in zip(model["means"], model["precision_factors"], strict=True):
            residual = query - mean
            whitened = residual * factor if factor.ndim == 1 else residual @ factor
            log_volume = (factor if factor.ndim == 1 else factor.diagonal()).log().sum()
            distance = whitened.square().sum(dim=1) + query.shape[1] * math.log(2 * math.pi)
            by_component.append(log_volume - 0.5 * distance)
        log_densities = torch.stack(by_component, dim=1) + model["log_weights"]  # (M, components)
        return -log_densities.logsumexp(dim=1)


__all__ = ["GmmDetector"]
