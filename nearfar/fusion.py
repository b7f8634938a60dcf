"""Fusion of several systems' scores: each normalised on its own normal clips, then combined.

A fused score depends on its own clip's scores and on calibration clips, on no other test clip:
ranks or z-scores among test clips would need the whole test set, and are against the rules.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, Self, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

Normalization = Literal["z", "quantile", "min_max"]
Combination = Literal["sum", "minimum"]

_TAIL_SHARE = 0.1  # of the calibration scores, at either end, under an exponential tail
_SUM_TOLERANCE = 1e-6


class Normalizer(Protocol):
    """A member's scale on one machine."""

    @classmethod
    def fit(cls, calibration_scores: NDArray[np.float64]) -> Self:
        """Learn the scale from scores (N,) of normal clips, at least two of them different."""

    def transform(self, anomaly_scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return scores (M,) on the common scale, in the same strict order."""


class ZNormalizer(NamedTuple):
    """(s - mean) / standard deviation."""

    mean: float
    deviation: float

    @classmethod
    def fit(cls, calibration_scores: NDArray[np.float64]) -> Self:
        """Learn mean and standard deviation (N - 1 in its denominator)."""
        return cls(float(calibration_scores.mean()), float(calibration_scores.std(ddof=1)))

    def transform(self, anomaly_scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return standard deviations above the mean of normal clips."""
        return (anomaly_scores - self.mean) / self.deviation


class MinMaxNormalizer(NamedTuple):
    """(s - smallest) / (largest - smallest), not clipped."""

    smallest: float
    largest: float

    @classmethod
    def fit(cls, calibration_scores: NDArray[np.float64]) -> Self:
        """Learn the range."""
        return cls(float(calibration_scores.min()), float(calibration_scores.max()))

    def transform(self, anomaly_scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return 0 for the smallest score of a normal clip, 1 for the largest."""
        return (anomaly_scores - self.smallest) / (self.largest - self.smallest)


@dataclass(frozen=True, eq=False)
class QuantileNormalizer:
    """-log10 of the share of normal clips above s, with exponential tails beyond the quantiles.

    A plain quantile is bounded: all scores above the largest calibration score tie, which is where
    anomalies are. Here the outer tenth at either end is an exponential distribution (peaks over a
    threshold; Pickands, 1975, with shape 0), fitted by its mean excess, so that no two scores tie.

    Attributes:
        knots: (K,) distinct calibration scores between the tails, ascending.
        shares: (K,) of normal clips up to each knot, in (0, 1).
        upper_scale: Mean excess of the upper tail over the last knot.
        lower_scale: Mean deficit of the lower tail below the first knot.
    """

    knots: NDArray[np.float64]
    shares: NDArray[np.float64]
    upper_scale: float
    lower_scale: float

    @classmethod
    def fit(cls, calibration_scores: NDArray[np.float64]) -> Self:
        """Learn quantiles and tails."""
        ordered = np.sort(calibration_scores)
        values, first, counts = np.unique(ordered, return_index=True, return_counts=True)
        # Weibull's plotting positions i / (N + 1); tied scores share the mean of theirs.
        shares = (first + (counts + 1) / 2) / (len(ordered) + 1)
        low = max(int(np.searchsorted(shares, _TAIL_SHARE)), 1)
        high = min(int(np.searchsorted(shares, 1 - _TAIL_SHARE, side="right")), len(values) - 1) - 1
        if high < low:  # fewer than three distinct scores: one knot, or both, is the whole middle
            low = high = (len(values) - 1) // 2
        below, above = ordered[ordered < values[low]], ordered[ordered > values[high]]
        spread = float(values[-1] - values[0])
        return cls(
            values[low : high + 1],
            shares[low : high + 1],
            float((above - values[high]).mean()) if len(above) else spread,
            float((values[low] - below).mean()) if len(below) else spread,
        )

    def transform(self, anomaly_scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return -log10 of the share above: 1 means that a tenth of normal clips score higher."""
        first, last = self.knots[0], self.knots[-1]
        middle = -np.log10(1 - np.interp(anomaly_scores, self.knots, self.shares))
        excess = np.maximum(anomaly_scores - last, 0) / (self.upper_scale * math.log(10))
        deficit = np.minimum(anomaly_scores - first, 0) / self.lower_scale
        # log1p, so that scores far below do not all round to a share of 1 above.
        low = -np.log1p(-self.shares[0] * np.exp(deficit)) / math.log(10)
        return np.asarray(np.where(anomaly_scores < first, low, middle + excess))


NORMALIZERS: dict[str, type[Normalizer]] = {
    "z": ZNormalizer,
    "quantile": QuantileNormalizer,
    "min_max": MinMaxNormalizer,
}


class ScoreFusion:
    """Weighted sum of the members' scores, each normalised by its own calibration scores.

    Or the smallest of them, which calls a clip anomalous only where all members do ("Z-MIN" with
    normalization="z", arXiv 2606.19269).

    Args:
        weights: (S,) one per member, none negative, with the sum 1.
        normalization: "z", "quantile" (with exponential tails) or "min_max".
        combination: "sum", or "minimum", which knows no weights: they are all the same.

    See Also:
        weight_search.search_weights, which looks for weights on development labels.
    """

    def __init__(
        self,
        weights: Sequence[float],
        *,
        normalization: Normalization = "z",
        combination: Combination = "sum",
    ) -> None:
        self.weights = check_weights(weights)
        if combination not in get_args(Combination):
            raise ValueError(f"combination={combination!r} is neither 'sum' nor 'minimum'.")
        if combination == "minimum" and max(self.weights) - min(self.weights) > _SUM_TOLERANCE:
            raise ValueError(
                f"combination='minimum' takes the smallest of the members' scores, which weights "
                f"such as {list(self.weights)} do not change. Give none, or combination='sum'."
            )
        if normalization not in NORMALIZERS:
            choices = ", ".join(repr(name) for name in NORMALIZERS)
            raise ValueError(f"normalization={normalization!r} is not one of {choices}.")
        self.normalization: Normalization = normalization
        self.combination: Combination = combination
        self.normalizers_: dict[str, list[Normalizer]] | None = None  # machine -> one per member

    def fit(self, calibration_scores: Mapping[str, Sequence[ArrayLike]]) -> Self:
        """Learn each member's scale on each machine.

        Args:
            calibration_scores: Machine -> per member (N,), N >= 2, scores of normal clips that were
                in neither the member's training nor its bank. Members may have different clips.

        Raises:
            ValueError: Another number of members, a score that is not finite, or scores that are
                all equal, so that they give no scale.
        """
        normalizers = {}
        for machine, members in calibration_scores.items():
            if len(members) != len(self.weights):
                raise ValueError(
                    f"{machine}: calibration scores of {len(members)} members came for "
                    f"{len(self.weights)} weights. Give one weight per member."
                )
            normalizers[machine] = [
                NORMALIZERS[self.normalization].fit(_calibration(scores, machine, number))
                for number, scores in enumerate(members, start=1)
            ]
        self.normalizers_ = normalizers
        return self

    def normalized(self, anomaly_scores: Sequence[ArrayLike], machine: str) -> NDArray[np.float64]:
        """Return the members' scores on the common scale, (S, M), in the order of the weights.

        Args:
            anomaly_scores: Per member (M,), of the same clips in the same order.
            machine: Whose calibration counts, by its full name.

        Raises:
            ValueError: `fit` did not see the machine, the members differ in number or length, or a
                score is not finite.
        """
        if self.normalizers_ is None:
            raise ValueError("This ScoreFusion is not fitted. Call fit with calibration scores.")
        if machine not in self.normalizers_:
            raise ValueError(
                f"{machine} has no calibration scores in this fusion, which knows "
                f"{sorted(self.normalizers_)}. Every member must be calibrated on it."
            )
        arrays = [np.asarray(scores, dtype=np.float64) for scores in anomaly_scores]
        shapes = [array.shape for array in arrays]
        if len(arrays) != len(self.weights) or len(set(shapes)) > 1 or len(shapes[0]) != 1:
            raise ValueError(
                f"{machine}: the members' scores have the shapes {shapes}; expected "
                f"{len(self.weights)} times (M,), of the same clips."
            )
        for number, array in enumerate(arrays, start=1):
            if not np.isfinite(array).all():
                raise ValueError(
                    f"{machine}: {int((~np.isfinite(array)).sum())} of {len(array)} scores of "
                    f"member {number} are NaN or infinite. Score the clips again."
                )
        return np.stack(
            [
                normalizer.transform(array)
                for normalizer, array in zip(self.normalizers_[machine], arrays, strict=True)
            ]
        )

    def transform(self, anomaly_scores: Sequence[ArrayLike], machine: str) -> NDArray[np.float64]:
        """Return fused scores (M,), higher = more anomalous; see `normalized` for the arguments.

        A clip's fused score is the same alone and beside any other clips.
        """
        normalized = self.normalized(anomaly_scores, machine)
        if self.combination == "minimum":
            smallest: NDArray[np.float64] = normalized.min(axis=0)
            return smallest
        return weighted_sum(self.weights, normalized)


def smallest_of(num_members: int, *, normalization: Normalization = "z") -> ScoreFusion:
    """Return the fusion that takes the smallest of so many normalised scores."""
    even = [1 / num_members] * num_members
    return ScoreFusion(even, normalization=normalization, combination="minimum")


def weighted_sum(weights: Sequence[float], normalized: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return fused scores (M,) of normalised ones (S, M)."""
    fused = np.zeros(normalized.shape[1])
    for weight, scores in zip(weights, normalized, strict=True):
        # Member by member: a matrix product may round one clip differently in another batch.
        fused += weight * scores
    return fused


def check_weights(weights: Sequence[float]) -> tuple[float, ...]:
    """Return the weights as floats, or raise ValueError: none is negative, their sum is 1."""
    values = np.asarray(weights, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"A fusion has two members or more, but the weights are {weights}.")
    if not np.isfinite(values).all() or (values < 0).any():
        raise ValueError(f"Weights must be finite and not negative, got {values.tolist()}.")
    total = float(values.sum())
    if abs(total - 1) > _SUM_TOLERANCE:
        scaled = [round(value / total, 4) for value in values.tolist()] if total > 0 else None
        hint = f" In the same proportion: {scaled}." if scaled else ""
        raise ValueError(
            f"Weights must have the sum 1, but {values.tolist()} have {total:g}.{hint}"
        )
    return tuple(values.tolist())


def _calibration(scores: ArrayLike, machine: str, member: int) -> NDArray[np.float64]:
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim != 1 or not np.isfinite(array).all():
        raise ValueError(
            f"{machine}: the calibration scores of member {member} must be finite, (N,), got "
            f"shape {array.shape} with {int((~np.isfinite(array)).sum())} that are not."
        )
    if len(set(array.tolist())) < 2:
        raise ValueError(
            f"{machine}: member {member} has {len(array)} calibration scores, and no two of them "
            "differ, so they give no scale. Hold more normal clips out."
        )
    return array
