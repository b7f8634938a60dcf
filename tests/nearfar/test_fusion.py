"""Laws of a fusion: clips do not see each other, scales come from normals, weights are weights."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from nearfar.fusion import NORMALIZERS, ScoreFusion, check_weights, smallest_of

FAN = "2026/fan/00"
RNG = np.random.default_rng(0)
CALIBRATION = [RNG.gamma(3, 0.02, 40), RNG.gamma(9, 100, 25)]  # of very different scales


def fitted(normalization: str = "z", weights: tuple[float, ...] = (0.45, 0.55)) -> ScoreFusion:
    return ScoreFusion(weights, normalization=normalization).fit({FAN: CALIBRATION})


def new_scores(count: int = 30, seed: int = 1) -> list[NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    return [rng.gamma(4, 0.03, count), rng.gamma(9, 120, count)]


@pytest.mark.parametrize("normalization", NORMALIZERS)
def test_a_clips_score_is_the_same_alone_and_beside_any_others(normalization: str) -> None:
    fusion, scores = fitted(normalization), new_scores()
    together = fusion.transform(scores, FAN)
    for clip in range(30):
        alone = fusion.transform([member[[clip]] for member in scores], FAN)
        assert alone[0] == together[clip]  # bit for bit
    others = [np.r_[member[:5], 1e6 * member] for member in scores]
    assert np.array_equal(fusion.transform(others, FAN)[:5], together[:5])
    order = np.random.default_rng(2).permutation(30)
    shuffled = fusion.transform([member[order] for member in scores], FAN)
    assert np.array_equal(shuffled, together[order])


@pytest.mark.parametrize("normalization", NORMALIZERS)
def test_a_member_of_weight_one_keeps_its_own_order(normalization: str) -> None:
    scores = new_scores(400)
    # Far beyond the calibration clips as well: there a plain quantile has nothing but ties.
    scores[0] = np.r_[scores[0], np.linspace(0.3, 50, 50), np.linspace(-2, 0, 50)]
    scores[1] = np.r_[scores[1], np.zeros(100)]
    fused = fitted(normalization, (1.0, 0.0)).transform(scores, FAN)
    assert np.array_equal(np.argsort(fused), np.argsort(scores[0]))
    assert len(np.unique(fused)) == len(np.unique(scores[0]))


@pytest.mark.parametrize("normalization", NORMALIZERS)
def test_the_scale_of_a_member_does_not_matter(normalization: str) -> None:
    scores = new_scores()
    expected = fitted(normalization).transform(scores, FAN)
    calibration = [CALIBRATION[0], 1e-3 * CALIBRATION[1] + 7]
    fusion = ScoreFusion((0.45, 0.55), normalization=normalization).fit({FAN: calibration})
    result = fusion.transform([scores[0], 1e-3 * scores[1] + 7], FAN)
    np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-9)


def test_z_and_min_max_are_what_they_say() -> None:
    scores = new_scores()
    z = [(s - c.mean()) / c.std(ddof=1) for s, c in zip(scores, CALIBRATION, strict=True)]
    np.testing.assert_allclose(fitted("z").transform(scores, FAN), 0.45 * z[0] + 0.55 * z[1])
    unit = [(s - c.min()) / (c.max() - c.min()) for s, c in zip(scores, CALIBRATION, strict=True)]
    result = fitted("min_max").transform(scores, FAN)
    np.testing.assert_allclose(result, 0.45 * unit[0] + 0.55 * unit[1])


def test_a_quantile_score_is_the_power_of_ten_that_normals_exceed_it_with() -> None:
    calibration = np.random.default_rng(5).exponential(size=4000)
    normalizer = NORMALIZERS["quantile"].fit(calibration)
    scores = np.linspace(0.05, 12, 60)
    exact = scores / math.log(10)  # -log10 of an exponential's tail, far beyond the largest of 4000
    # The tail's scale is a mean of 400 excesses: known to 5 %.
    np.testing.assert_allclose(normalizer.transform(scores), exact, rtol=0.12, atol=0.02)
    assert calibration.max() < 10.5


def test_a_quantile_score_has_no_jumps_and_rises_everywhere() -> None:
    calibration = np.sort(np.random.default_rng(6).normal(size=30))
    normalizer = NORMALIZERS["quantile"].fit(calibration)
    grid = np.linspace(-8, 12, 20_001)
    steps = np.diff(normalizer.transform(grid))
    assert (steps > 0).all()
    assert steps.max() < 0.02  # of 0.001 in score


@pytest.mark.parametrize("count", [2, 3, 4, 7, 11])
def test_few_or_tied_calibration_scores_still_give_a_rising_scale(count: int) -> None:
    values = np.repeat(np.arange(count), np.arange(1, count + 1))  # with ties
    for calibration in (np.arange(count, dtype=float), values.astype(float)):
        for normalizer in NORMALIZERS.values():
            grid = np.linspace(-1.5 * count, 2.5 * count, 200)
            result = normalizer.fit(calibration).transform(grid)
            assert np.isfinite(result).all()
            assert (np.diff(result) > 0).all()


def test_a_minimum_is_the_smallest_normalised_score_and_knows_no_weights() -> None:
    fusion = smallest_of(2).fit({FAN: CALIBRATION})
    scores = new_scores()
    z = [(s - c.mean()) / c.std(ddof=1) for s, c in zip(scores, CALIBRATION, strict=True)]
    np.testing.assert_allclose(fusion.transform(scores, FAN), np.minimum(*z), rtol=1e-12)
    alone = [fusion.transform([score[[i]] for score in scores], FAN)[0] for i in range(30)]
    assert alone == fusion.transform(scores, FAN).tolist()
    assert len(set(np.minimum(*z) == z[0])) == 2  # either is the smaller one at times
    with pytest.raises(ValueError, match=r"weights such as \[0.4, 0.6\] do not change"):
        ScoreFusion((0.4, 0.6), combination="minimum")
    with pytest.raises(ValueError, match="'max' is neither 'sum' nor 'minimum'"):
        ScoreFusion((0.5, 0.5), combination="max")


def test_machines_have_scales_of_their_own() -> None:
    pump = "2026/pump/00"
    fusion = ScoreFusion((0.5, 0.5)).fit({FAN: CALIBRATION, pump: [c + 5 for c in CALIBRATION]})
    scores = new_scores()
    shifted = fusion.transform([member + 5 for member in scores], pump)
    np.testing.assert_allclose(shifted, fusion.transform(scores, FAN))
    assert not np.allclose(fusion.transform(scores, pump), fusion.transform(scores, FAN))
    with pytest.raises(ValueError, match=r"2026/valve/00 has no calibration scores in this fusion"):
        fusion.transform(scores, "2026/valve/00")


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            (0.5, 0.6),
            r"\[0.5, 0.6\] have 1.1. In the same proportion: \[0.4545, 0.5455\]",
        ),
        ((45.0, 55.0), r"In the same proportion: \[0.45, 0.55\]"),
        ((0.0, 0.0), r"have 0\.$"),
        ((1.5, -0.5), "finite and not negative"),
        ((float("nan"), 1.0), "finite and not negative"),
        ((1.0,), "two members or more"),
        ((), "two members or more"),
    ],
)
def test_weights_that_are_none_are_refused(weights: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScoreFusion(weights)


def test_rounded_weights_pass() -> None:
    thirds = (0.3333333, 0.3333333, 0.3333334)
    assert check_weights(thirds) == thirds
    assert check_weights([0.1] * 10) == (0.1,) * 10  # their sum is not 1 in floating point


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_refused_with_their_member(bad: float) -> None:
    scores = new_scores()
    scores[1][[3, 4]] = bad
    with pytest.raises(ValueError, match=r"2026/fan/00: 2 of 30 scores of member 2 are NaN or"):
        fitted().transform(scores, FAN)
    with pytest.raises(ValueError, match=r"calibration scores of member 1 must be finite"):
        ScoreFusion((0.5, 0.5)).fit({FAN: [[0.1, bad], [0.1, 0.2]]})


def test_scores_that_do_not_pair_are_refused() -> None:
    scores = new_scores()
    with pytest.raises(ValueError, match=r"shapes \[\(30,\), \(29,\)\]; expected 2 times \(M,\)"):
        fitted().transform([scores[0], scores[1][:-1]], FAN)
    with pytest.raises(ValueError, match=r"shapes \[\(30,\)\]; expected 2 times"):
        fitted().transform(scores[:1], FAN)
    with pytest.raises(ValueError, match="of 2 members came for 3 weights"):
        ScoreFusion((0.2, 0.3, 0.5)).fit({FAN: CALIBRATION})


def test_calibration_scores_that_give_no_scale_are_refused() -> None:
    for scores in ([0.5], [0.5, 0.5, 0.5], []):
        with pytest.raises(ValueError, match=r"member 2 has \d calibration scores, and no two"):
            ScoreFusion((0.5, 0.5)).fit({FAN: [CALIBRATION[0], scores]})


def test_a_fusion_that_is_not_fitted_or_of_an_unknown_scale_says_so() -> None:
    with pytest.raises(ValueError, match=r"not fitted\. Call fit"):
        ScoreFusion((0.5, 0.5)).transform(new_scores(), FAN)
    with pytest.raises(ValueError, match="normalization='rank' is not one of 'z', 'quantile'"):
        ScoreFusion((0.5, 0.5), normalization="rank")
