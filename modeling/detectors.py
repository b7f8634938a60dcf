"""Detectors: embeddings of normal clips in, anomaly scores of new clips out.

Every detector of `DETECTORS` follows `Detector`. Its fitted state is plain tensors, so that it goes
into safetensors as it is, and `fit` is the only place where anything is learned. So does the one
detector that only a bank may name: for models that score a clip themselves.
"""

from collections.abc import Callable

from .detector_base import Detector, NotFittedError
from .gmm_detector import GmmDetector
from .kmeans_detector import KmeansDetector
from .knn_detector import KnnDetector
from .lof_detector import LofDetector
from .mahalanobis_detector import MahalanobisDetector
from .norm_detector import NormDetector

# Name in AsdConfig -> constructor; options are its keyword-only arguments.
DETECTORS: dict[str, Callable[..., Detector]] = {
    "knn": KnnDetector,
    "mahalanobis": MahalanobisDetector,
    "kmeans": KmeansDetector,
    "gmm": GmmDetector,
    "lof": LofDetector,
}
# Name in a reference bank -> constructor: what an AsdConfig may name, and what compares nothing.
BANK_DETECTORS: dict[str, Callable[..., Detector]] = DETECTORS | {"norm": NormDetector}

__all__ = [
    "BANK_DETECTORS",
    "DETECTORS",
    "Detector",
    "GmmDetector",
    "KmeansDetector",
    "KnnDetector",
    "LofDetector",
    "MahalanobisDetector",
    "NormDetector",
    "NotFittedError",
]
