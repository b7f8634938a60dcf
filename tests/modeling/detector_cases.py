"""One set of options per behaviour worth a contract of its own, and embeddings for them."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from modeling.detectors import DETECTORS

CASES = {
    "knn": ("knn", {}),
    "knn, pooled": ("knn", {"per_domain": False, "num_neighbors": 3}),
    "knn, euclidean": ("knn", {"metric": "euclidean", "num_neighbors": 2}),
    "knn, one view": ("knn", {"metric": "unit_euclidean", "views": [1]}),
    "knn, local density": ("knn", {"normalization": "local_density"}),
    "knn, log local density": (
        "knn",
        {
            "normalization": "log_local_density",
            "density_neighbors": 6,
            "target_density_neighbors": 2,
            "density_total": True,
            "metric": "unit_euclidean",
        },
    ),
    "knn, difference": ("knn", {"normalization": "local_density_difference", "num_neighbors": 2}),
    "knn, varmin": ("knn", {"normalization": "varmin", "per_domain": False}),
    "knn, log varmin": ("knn", {"normalization": "log_varmin", "metric": "euclidean"}),
    "knn, median": ("knn", {"standardization": "median"}),
    "knn, z-score of densities": (
        "knn",
        {
            "standardization": "z_score",
            "normalization": "log_local_density",
            "domain_choice": "view",
        },
    ),
    "knn, smote": ("knn", {"oversampling": "smote", "oversampling_ratio": 0.75}),
    "knn, memmix with densities": (
        "knn",
        {"oversampling": "memmix", "normalization": "local_density", "metric": "euclidean"},
    ),
    "knn, coreset": ("knn", {"coreset_size": 9}),
    "mahalanobis": ("mahalanobis", {}),
    "mahalanobis, pooled": ("mahalanobis", {"per_domain": False, "normalize": True}),
    "mahalanobis, to the largest": ("mahalanobis", {"shrink_to": "largest", "shrinkage": 0.2}),
    "kmeans": ("kmeans", {"num_centers": 3}),
    "gmm": ("gmm", {"covariance_type": "full", "regularization": 0.1}),
    "gmm, per domain": ("gmm", {"per_domain": True, "normalize": True, "views": [0]}),
    "lof": ("lof", {"num_neighbors": 4}),
    "lof, per domain": ("lof", {"per_domain": True, "metric": "euclidean"}),
    "norm": ("norm", {}),
    "norm, one view": ("norm", {"views": [1]}),
}
# Which cases compare a clip with the references, so that they say what is normal.
COMPARING = [case for case, (name, _) in CASES.items() if name in DETECTORS]
# Which cases leave references out, and how: with the others as they are, or refitted by folds.
REFITTED = [case for case in COMPARING if CASES[case][0] != "knn"]
LEFT_OUT = [case for case, (_, options) in CASES.items() if "coreset_size" not in options]
EXACT = [
    case
    for case in LEFT_OUT
    if case not in REFITTED and not {"oversampling", "standardization"} & set(CASES[case][1])
]
# One case of each detector.
EACH = ["knn", "mahalanobis", "kmeans", "gmm", "lof", "norm"]
DOMAINS = ["source"] * 15 + ["target"] * 4 + [None]


def clips(count: int, *, seed: int) -> Tensor:
    """Return embeddings (count, 2 views, 2 bands, 6) around one point, as normal clips are."""
    generator = torch.Generator().manual_seed(seed)
    return 2.0 + torch.randn(count, 2, 2, 6, generator=generator)


def cases(names: Sequence[str]) -> pytest.MarkDecorator:
    """Keep a law to some cases: what the base class does is the same for all of a detector."""
    return pytest.mark.parametrize("new_detector", names, indirect=True)
