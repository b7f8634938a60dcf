"""Thresholds, verdicts and p-values from the scores of normal clips.

The scores must be those of clips that neither trained the encoder nor sit in the bank: held out,
cross-fitted, or, for an encoder that never saw them, left out of the bank one by one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

ThresholdName = Literal["percentile", "gamma"]

THRESHOLD_QUANTILE = 0.9
# Parts into which calibration clips are dealt, to judge those of each by the others.
NUM_PARTS = 5

# Below it the scores are equal but for rounding: their spread is under 5e-5 of their mean.
_LEAST_LOG_SPREAD = 1e-9


class Decision(NamedTuple):
    """What a bank says of one clip.

    Attributes:
        anomaly_score: Higher is more anomalous.
        threshold: Above it a clip is anomalous; None if the machine was never calibrated.
        anomalous: `anomaly_score > threshold`; None without a threshold.
        p_value: (1 + number of calibration scores at or above this one) / (N + 1), uniform on new
            normal clips of the calibration clips' distribution; None without calibration.
    """

    anomaly_score: float
    threshold: float | None
    anomalous: bool | None
    p_value: float | None


class DomainPValue(NamedTuple):
    """The p-value of a clip among the calibration clips of one domain.

    Attributes:
        p_value: As in `Decision`.
        resolution: The smallest one that so few clips can say, 1 / (N + 1).
    """

    p_value: float
    resolution: float


class UntouchedPValues(NamedTuple):
    """P-values of calibration clips, each by calibration clips that it is not one of.

    Attributes:
        p_values: (N,) float64, in the order of the calibration's scores.
        num_others: (N,) int64, by how many clips each was judged.
    """

    p_values: Tensor
    num_others: Tensor


@dataclass(frozen=True, eq=False)
class Calibration:
    """A machine's calibration clips, their scores, and the threshold these give.

    Attributes:
        anomaly_scores: (N,) in ascending order; N is 0 without calibration.
        file_names: N base names, of the same clips; None in a bank of the first versions.
        domains: N times "source", "target" or None.
        threshold: Above it a clip is anomalous; None without calibration.
        rule: {"name": "percentile" or "gamma", "quantile", "scores": "held_out", "cross_fitted" or
            "leave_one_out"}; None without calibration.
    """

    anomaly_scores: Tensor
    file_names: list[str | None]
    domains: list[str | None]
    threshold: float | None
    rule: dict[str, Any] | None

    @classmethod
    def fit(
        cls,
        anomaly_scores: Tensor,
        file_names: Sequence[str | None],
        domains: Sequence[str | None],
        *,
        origin: str,
        name: ThresholdName = "percentile",
        quantile: float = THRESHOLD_QUANTILE,
    ) -> Self:
        """Find the threshold of N scores.

        Args:
            anomaly_scores: (N,), higher is more anomalous; N may be 0.
            file_names: N base names.
            domains: N times "source", "target" or None.
            origin: What made the scores independent of the clips: "held_out", "cross_fitted" or
                "leave_one_out".
            name: A key of `THRESHOLDS`.
            quantile: Share of new normal clips that should stay below the threshold, in (0, 1).

        Raises:
            ValueError: The three differ in number, a score is not finite, or the rule cannot be
                applied to these scores.
        """
        check_rule(name, quantile)
        if not len(anomaly_scores) == len(file_names) == len(domains):
            raise ValueError(
                f"{len(anomaly_scores)} calibration scores, {len(file_names)} file names and "
                f"{len(domains)} domains must describe the same clips."
            )
        if not torch.isfinite(anomaly_scores).all():
            wrong = int((~torch.isfinite(anomaly_scores)).sum())
            raise ValueError(
                f"{wrong} of {len(anomaly_scores)} calibration scores are NaN or infinite. Check "
                "the recordings and the embeddings."
            )
        order = anomaly_scores.argsort(stable=True)
        threshold = rule = None
        if len(order):
            threshold = THRESHOLDS[name](anomaly_scores.double(), quantile)
            rule = {"name": name, "quantile": quantile, "scores": origin}
        return cls(
            anomaly_scores[order],
            [file_names[i] for i in order.tolist()],
            [domains[i] for i in order.tolist()],
            threshold,
            rule,
        )

    def decide(self, anomaly_score: float) -> Decision:
        """Return the verdict on one score; all but the score is None without calibration.

        Raises:
            ValueError: The score is NaN.
        """
        score = float(anomaly_score)
        if math.isnan(score):
            raise ValueError("The score is NaN. Check the recording and the embedding.")
        if self.threshold is None:
            return Decision(score, None, None, None)
        p_value = _p_value(score, self.anomaly_scores)
        return Decision(score, self.threshold, score > self.threshold, p_value)

    def domain_p_values(self, anomaly_score: float) -> dict[str, DomainPValue]:
        """Return the p-value of one score among each domain's clips; domains without are left out.

        Too coarse for a verdict, which takes the p-value among all clips: ten target clips cannot
        say less than 1/11.
        """
        names = np.asarray(self.domains, dtype=object)
        values = {}
        for domain in sorted({domain for domain in self.domains if domain is not None}):
            scores = self.anomaly_scores[torch.from_numpy(names == domain)]
            p_value = _p_value(float(anomaly_score), scores)
            values[domain] = DomainPValue(p_value, 1 / (len(scores) + 1))
        return values

    def untouched_p_values(self, *, seed: int = 0) -> UntouchedPValues:
        """Return the p-value of each calibration clip by clips that are not of its part.

        The clips of each domain are dealt to `NUM_PARTS` parts at random, or to as many as there
        are clips; each part is judged by the others. So it can be said how often normal clips raise
        an alarm, with no clip having a say in its own verdict. A clip alone has no p-value (NaN).

        Args:
            seed: Of the parts.
        """
        count = len(self.anomaly_scores)
        generator = torch.Generator().manual_seed(seed)
        shuffled = torch.randperm(count, generator=generator).tolist()
        dealt = sorted(shuffled, key=lambda i: self.domains[i] or "")  # stable: domain by domain
        parts = torch.empty(count, dtype=torch.int64)
        parts[torch.tensor(dealt, dtype=torch.int64)] = torch.arange(count) % NUM_PARTS
        p_values = torch.full((count,), torch.nan, dtype=torch.float64)
        num_others = torch.zeros(count, dtype=torch.int64)
        for i, score in enumerate(self.anomaly_scores.tolist()):
            others = self.anomaly_scores[parts != parts[i]]
            num_others[i] = len(others)
            if len(others):
                p_values[i] = _p_value(score, others)
        return UntouchedPValues(p_values, num_others)


def percentile_threshold(anomaly_scores: Tensor, quantile: float) -> float:
    """Return the quantile of scores (N,), linear between order statistics."""
    return float(np.quantile(anomaly_scores.double().numpy(), quantile))


def gamma_threshold(anomaly_scores: Tensor, quantile: float) -> float:
    """Return the quantile of the gamma distribution that fits scores (N,) best.

    Maximum likelihood with the location fixed at 0 (the official baseline leaves it free, and then
    a fit can fail). The shape k solves log k - digamma(k) = log(mean) - mean(log), by Newton's
    method on 1/k (Minka, 2002, "Estimating a Gamma distribution").

    See Also:
        percentile_threshold, which needs no distribution: take it for scores that may be zero or
        negative, or where there are calibration clips enough.

    Raises:
        ValueError: A score is not positive, or the scores are all equal.
    """
    scores = anomaly_scores.double()
    if not (scores > 0).all():
        raise ValueError(
            f"A gamma distribution fits positive scores, but the smallest of these "
            f"{len(scores)} is {float(scores.min()):.4g}. Use threshold='percentile'."
        )
    mean, mean_log = scores.mean(), scores.log().mean()
    spread = float(mean.log() - mean_log)
    if spread < _LEAST_LOG_SPREAD:
        raise ValueError(
            f"A gamma distribution needs scores that differ, but these {len(scores)} are all "
            f"{float(mean):.4g}. Use threshold='percentile', or more calibration clips."
        )
    k = torch.tensor(
        (3 - spread + math.sqrt((spread - 3) ** 2 + 24 * spread)) / (12 * spread),
        dtype=torch.float64,
    )
    for _ in range(100):
        slope = k**2 * (1 / k - torch.polygamma(1, k))
        step = (k.log() - torch.digamma(k) - spread) / slope
        k, before = 1 / (1 / k + step), k
        if abs(k - before) <= 1e-12 * k:
            break
    return float(mean / k * _gamma_quantile(k, quantile))


def check_rule(name: str, quantile: float) -> None:
    """Raise ValueError unless a threshold can be found by this rule."""
    if name not in THRESHOLDS:
        choices = ", ".join(repr(choice) for choice in THRESHOLDS)
        raise ValueError(f"threshold={name!r} is not one of {choices}.")
    if not 0 < quantile < 1:
        raise ValueError(
            f"threshold_quantile={quantile} must lie between 0 and 1: it is the share of normal "
            "clips below the threshold, such as 0.9."
        )


def _gamma_quantile(k: Tensor, quantile: float) -> Tensor:
    """Return x with P(X <= x) = quantile for a gamma of shape k and scale 1, by bisection."""
    low, high = torch.zeros_like(k), k + 1
    while torch.special.gammainc(k, high) < quantile:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        if torch.special.gammainc(k, middle) < quantile:
            low = middle
        else:
            high = middle
    return high


def _p_value(score: float, calibration_scores: Tensor) -> float:
    above = int((calibration_scores.double() >= score).sum())
    return (1 + above) / (len(calibration_scores) + 1)


THRESHOLDS: dict[str, Callable[[Tensor, float], float]] = {
    "percentile": percentile_threshold,
    "gamma": gamma_threshold,
}


__all__ = [
    "THRESHOLDS",
    "Calibration",
    "Decision",
    "DomainPValue",
    "ThresholdName",
    "UntouchedPValues",
]
