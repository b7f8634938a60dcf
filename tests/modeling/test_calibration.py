"""Thresholds and p-values: by the rule they name, of the clips they may use, or refused."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from modeling import THRESHOLDS, Calibration
from modeling.calibration import gamma_threshold


def scores_of(shape: float, count: int, *, scale: float = 0.03, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).gamma(shape, scale, count))


def calibration(scores: list[float] | torch.Tensor, **options: object) -> Calibration:
    values = torch.as_tensor(scores, dtype=torch.float32)
    names = [f"clip_{i}.wav" for i in range(len(values))]
    domains = ["target" if i % 5 == 4 else "source" for i in range(len(values))]
    return Calibration.fit(values, names, domains, origin="held_out", **options)


@pytest.mark.parametrize("count", [10, 100, 1000])
@pytest.mark.parametrize("shape", [0.3, 1.0, 4.0, 150.0, 20_000.0])
@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.99])
def test_the_gamma_threshold_is_scipys(shape: float, count: int, quantile: float) -> None:
    scores = scores_of(shape, count, seed=count)
    fitted = stats.gamma.fit(scores.numpy(), floc=0)
    expected = stats.gamma.ppf(quantile, *fitted)
    # scipy's root of the likelihood equation stops at a relative error of some 1e-9 in the shape.
    assert gamma_threshold(scores, quantile) == pytest.approx(expected, rel=1e-6)


def test_the_gamma_fit_is_the_likeliest() -> None:
    scores = scores_of(3.0, 40)

    def likelihood(shape: float) -> float:
        scale = float(scores.mean()) / shape
        return float(stats.gamma.logpdf(scores.numpy(), shape, scale=scale).sum())

    threshold = gamma_threshold(scores, 0.9)
    shapes = np.geomspace(0.5, 20, 2000)
    best = shapes[np.argmax([likelihood(shape) for shape in shapes])]
    expected = stats.gamma.ppf(0.9, best, scale=float(scores.mean()) / best)
    assert threshold == pytest.approx(expected, rel=1e-3)  # the grid is as fine


def test_the_gamma_threshold_scales_with_the_scores() -> None:
    scores = scores_of(2.0, 50)
    assert gamma_threshold(1e6 * scores, 0.9) == pytest.approx(1e6 * gamma_threshold(scores, 0.9))


@pytest.mark.parametrize("name", THRESHOLDS)
def test_about_one_new_normal_clip_in_ten_lies_above_a_threshold(name: str) -> None:
    new = scores_of(3.0, 20_000, seed=1)
    shares = [
        float((new > THRESHOLDS[name](scores_of(3.0, 100, seed=seed), 0.9)).float().mean())
        for seed in range(2, 62)
    ]
    # 60 banks of 100 clips: a standard error of some 0.03 / sqrt(60).
    assert np.mean(shares) == pytest.approx(0.1, abs=0.016)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([0.1, 0.0, 0.2], r"positive scores, but the smallest of these 3 is 0\. Use threshold="),
        ([0.1, -0.5, 0.2], r"the smallest of these 3 is -0\.5"),
        ([0.25] * 7, r"needs scores that differ, but these 7 are all 0\.25"),
    ],
)
def test_scores_that_no_gamma_fits_are_refused(scores: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibration(scores, name="gamma")
    assert calibration(scores, name="percentile").threshold is not None


def test_scores_stay_with_their_clips_in_ascending_order() -> None:
    scores = [0.5, 0.1, 0.4, 0.2, 0.3, 0.6]
    result = calibration(scores)
    assert result.anomaly_scores.tolist() == pytest.approx(sorted(scores))
    names = [f"clip_{i}.wav" for i in np.argsort(scores)]
    assert result.file_names == names
    assert result.domains[names.index("clip_4.wav")] == "target"
    assert result.rule == {"name": "percentile", "quantile": 0.9, "scores": "held_out"}


def test_the_quantile_is_the_one_asked_for() -> None:
    scores = torch.linspace(0.1, 1.1, 101)
    assert calibration(scores, quantile=0.5).threshold == pytest.approx(0.6)
    assert calibration(scores, quantile=0.95).threshold == pytest.approx(1.05)


def test_no_scores_give_no_verdict() -> None:
    decision = calibration([]).decide(1.0)
    assert decision == (1.0, None, None, None)
    assert calibration([]).domain_p_values(1.0) == {}


def test_a_p_value_in_a_domain_counts_its_clips_and_says_how_coarse_it_is() -> None:
    result = calibration([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.25])
    # The two target clips scored 0.5 and 0.25.
    values = result.domain_p_values(0.3)
    assert values["target"] == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert values["source"] == (pytest.approx(7 / 9), pytest.approx(1 / 9))
    assert result.domain_p_values(5.0)["target"].p_value == pytest.approx(1 / 3)  # never 0
    assert result.decide(5.0).p_value == pytest.approx(1 / 11)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_calibration_score_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="1 of 3 calibration scores are NaN or infinite"):
        calibration([0.1, bad, 0.2])


def test_a_score_that_is_nan_has_no_verdict() -> None:
    with pytest.raises(ValueError, match="The score is NaN"):
        calibration([0.1, 0.2]).decide(math.nan)
    assert calibration([0.1, 0.2]).decide(math.inf).anomalous is True


def test_a_rule_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(ValueError, match="threshold='median' is not one of 'percentile', 'gamma'"):
        calibration([0.1, 0.2], name="median")
    for quantile in (0.0, 1.0, 90.0):
        with pytest.raises(ValueError, match=f"threshold_quantile={quantile} must lie between"):
            calibration([0.1, 0.2], quantile=quantile)


def test_scores_and_clips_that_differ_in_number_are_refused() -> None:
    with pytest.raises(ValueError, match="2 calibration scores, 1 file names and 2 domains"):
        Calibration.fit(torch.rand(2), ["a.wav"], [None, None], origin="held_out")


def test_no_clip_has_a_say_in_its_own_untouched_p_value() -> None:
    scores = scores_of(3.0, 23)
    told = calibration(scores).untouched_p_values()
    ordered = scores.float().sort().values
    for i, (p_value, others) in enumerate(zip(*told, strict=True)):
        assert 18 <= others <= 19  # all but its fifth
        steps = p_value * (others + 1)
        assert steps == pytest.approx(round(float(steps)))
        above = int((ordered >= ordered[i]).sum()) - 1  # of all others
        assert above - 4 <= round(float(steps)) - 1 <= above
    higher = scores.clone()
    higher[scores.argmax()] += 1e6  # what the highest scores changes nothing, itself included
    assert torch.equal(calibration(higher).untouched_p_values().p_values, told.p_values)


def test_untouched_p_values_are_uniform_over_calibrations() -> None:
    p_values = torch.cat(
        [calibration(scores_of(3.0, 40, seed=i)).untouched_p_values().p_values for i in range(80)]
    )
    for rate, due in ((0.1, 3 / 33), (0.5, 16 / 33)):  # what 32 others can give
        # A standard error of some sqrt(0.25 / 3200).
        assert float((p_values <= rate + 1e-9).double().mean()) == pytest.approx(due, abs=0.02)


def test_a_clip_alone_has_no_untouched_p_value_and_two_judge_each_other() -> None:
    assert calibration([]).untouched_p_values().p_values.tolist() == []
    alone = calibration([0.5]).untouched_p_values()
    assert math.isnan(alone.p_values[0])
    assert alone.num_others.tolist() == [0]
    assert calibration([0.2, 0.1]).untouched_p_values().p_values.tolist() == [1.0, 0.5]
