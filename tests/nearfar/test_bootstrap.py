"""Laws of the bootstrap: its fast metrics are scikit-learn's, its resamples are fair and paired."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from nearfar.dcase_task2 import bootstrap
from nearfar.dcase_task2.bootstrap import weighted_metrics
from nearfar.metrics import (
    bootstrap_difference,
    bootstrap_interval,
    official_score,
    section_metrics,
)

Section = tuple[NDArray[np.bool_], NDArray[np.str_], NDArray[np.float64]]


def section(seed: int, *, num_clips: int = 80, levels: int | None = None) -> Section:
    """Return anomalous, domains, scores; with `levels`, scores of many ties."""
    rng = np.random.default_rng(seed)
    anomalous = np.arange(num_clips) % 2 == 1
    domains = np.where(np.arange(num_clips) % 4 < 2, "source", "target")
    scores = rng.normal(size=num_clips) + 0.8 * anomalous
    return anomalous, domains, scores if levels is None else np.round(scores * levels) / levels


def expected_with_sample_weight(
    anomalous: NDArray, domains: NDArray, scores: NDArray, counts: NDArray, max_fpr: float
) -> list[float]:
    values = []
    for domain in ("source", "target"):
        kept = anomalous | (domains == domain)
        values.append(roc_auc_score(anomalous[kept], scores[kept], sample_weight=counts[kept]))
    values.append(roc_auc_score(anomalous, scores, sample_weight=counts, max_fpr=max_fpr))
    return values


OFFICIAL = ("auc_source", "auc_target", "pauc")


def official(*arguments: NDArray, **options: float) -> NDArray:
    """Return the official metrics since 2022, (R, 3)."""
    values = weighted_metrics(*arguments, **options)
    return np.stack([values[key] for key in OFFICIAL], axis=1)


@pytest.mark.parametrize("levels", [None, 1, 3, 10])
@pytest.mark.parametrize("max_fpr", [0.1, 0.3])
def test_weighted_metrics_equal_scikit_learns_for_any_counts_and_ties(
    levels: int | None, max_fpr: float
) -> None:
    for seed in range(6):
        anomalous, domains, scores = section(seed, levels=levels)
        counts = np.random.default_rng(seed).integers(0, 4, size=(3, len(scores)))
        counts[:, :4] += 1  # one normal and one anomaly of each domain at least
        result = official(anomalous, scores, domains, counts, max_fpr=max_fpr)
        expected = [
            expected_with_sample_weight(anomalous, domains, scores, row, max_fpr) for row in counts
        ]
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-12)


def test_counting_each_clip_once_gives_the_metrics_themselves() -> None:
    anomalous, domains, scores = section(0, levels=3)
    once = np.ones((1, len(scores)), dtype=np.int64)
    result = official(anomalous, scores, domains, once)
    assert result[0] == pytest.approx(section_metrics(anomalous, scores, domains), abs=1e-12)


def test_resampling_keeps_the_number_of_clips_of_every_domain_and_condition() -> None:
    rng = np.random.default_rng(0)
    anomalous, domains, _ = section(0, num_clips=100)
    anomalous, domains = anomalous[:93], domains[:93]
    counts = bootstrap._draw(anomalous, domains, 2000, rng)
    for domain in ("source", "target"):
        for condition in (False, True):
            rows = (domains == domain) & (anomalous == condition)
            assert (counts[:, rows].sum(1) == rows.sum()).all()
    # With n clips in a stratum, each is drawn once on average, with variance 1 - 1/n.
    assert counts.mean(0) == pytest.approx(1, abs=0.12)  # 5 standard errors of 2000 draws
    assert counts.var(0).mean() == pytest.approx(1 - 1 / 23, abs=0.03)


MACHINES = ("2026/ToyCar/00", "2026/fan/00", "2026/valve/00")


def one_system() -> dict[str, Section]:
    return {name: section(seed) for seed, name in enumerate(MACHINES)}


def two_systems(shift: float = 0.6) -> dict[str, tuple]:
    """Return system a = b plus `shift` on the anomalies: better on every machine."""
    return {
        name: (anomalous, domains, scores + shift * anomalous, scores)
        for name, (anomalous, domains, scores) in one_system().items()
    }


def test_the_estimate_is_the_official_score_and_lies_in_its_interval() -> None:
    result = bootstrap_interval(one_system())
    expected = official_score([section_metrics(a, s, d) for a, d, s in one_system().values()])
    assert result.estimate == expected
    assert result.low < result.estimate < result.high


def test_the_interval_is_that_of_a_plain_loop_over_resampled_clips() -> None:
    rng = np.random.default_rng(123)
    scores = []
    for _ in range(400):
        sections = []
        for anomalous, domains, anomaly_scores in one_system().values():
            strata = [
                np.flatnonzero((domains == domain) & (anomalous == condition))
                for domain in ("source", "target")
                for condition in (False, True)
            ]
            rows = np.concatenate([rng.choice(stratum, len(stratum)) for stratum in strata])
            once = np.ones((1, len(rows)), dtype=np.int64)
            resampled = anomalous[rows], anomaly_scores[rows], domains[rows]
            sections.append(official(*resampled, once)[0])
        scores.append(official_score(sections))
    result = bootstrap_interval(one_system(), num_resamples=4000)
    spread = np.std(scores)
    # The 2.5 % quantile of 400 draws has a standard error of some 0.13 spreads.
    assert result.low == pytest.approx(np.quantile(scores, 0.025), abs=0.45 * spread)
    assert result.high == pytest.approx(np.quantile(scores, 0.975), abs=0.45 * spread)


def test_the_same_system_differs_from_itself_by_exactly_nothing() -> None:
    assert bootstrap_difference(two_systems(shift=0.0)) == (0.0, 0.0, 0.0)


def test_swapping_the_systems_turns_the_interval_around() -> None:
    swapped = {name: (a, d, y, x) for name, (a, d, x, y) in two_systems().items()}
    forth, back = bootstrap_difference(two_systems()), bootstrap_difference(swapped)
    assert back == pytest.approx((-forth.estimate, -forth.high, -forth.low), abs=1e-12)


def test_a_better_system_has_a_difference_above_zero() -> None:
    result = bootstrap_difference(two_systems())
    assert 0 < result.low < result.estimate < result.high


def test_pairing_makes_the_difference_narrower_than_two_separate_intervals() -> None:
    systems = two_systems(shift=0.1)
    difference = bootstrap_difference(systems)
    apart = [
        bootstrap_interval(
            {name: (v[0], v[1], v[which]) for name, v in systems.items()}, seed=which
        )
        for which in (2, 3)
    ]
    separate = np.hypot(*(interval.high - interval.low for interval in apart))
    assert difference.high - difference.low < 0.5 * separate


def test_the_draws_depend_on_the_seed_and_the_machine_alone() -> None:
    systems = one_system()
    backwards = dict(reversed(systems.items()))
    assert bootstrap_interval(backwards) == pytest.approx(bootstrap_interval(systems), abs=1e-12)
    assert bootstrap_interval(systems, seed=1) != bootstrap_interval(systems, seed=2)
    # Two machines of equal scores are not resampled alike.
    twins = dict.fromkeys(("2026/a/00", "2026/b/00"), section(0))
    alone = bootstrap_interval({"2026/a/00": section(0)}, num_resamples=4000)
    both = bootstrap_interval(twins, num_resamples=4000)
    assert both.high - both.low < 0.85 * (alone.high - alone.low)


def test_batches_of_resamples_change_nothing_but_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bootstrap_interval(one_system(), num_resamples=3000)
    monkeypatch.setattr(bootstrap, "_CLIPS_PER_BATCH", 1000)  # 12 resamples at a time
    parts = bootstrap_interval(one_system(), num_resamples=3000)
    assert parts.estimate == whole.estimate
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high), abs=0.01)


def test_a_higher_confidence_widens_the_interval() -> None:
    narrow, wide = (bootstrap_interval(one_system(), confidence=c) for c in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_mistakes_are_answered_with_the_machines_name() -> None:
    anomalous, domains, scores = section(0)
    with pytest.raises(ValueError, match="2026/fan/00: 1 of 80 anomaly scores are NaN"):
        bootstrap_interval({"2026/fan/00": (anomalous, domains, np.r_[np.nan, scores[1:]])})
    with pytest.raises(ValueError, match=r"2026/fan/00: anomaly_scores has shape \(79,\)"):
        bootstrap_difference({"2026/fan/00": (anomalous, domains, scores, scores[:-1])})
    with pytest.raises(ValueError, match="no machine"):
        bootstrap_interval({})
    with pytest.raises(ValueError, match="num_resamples is 0"):
        bootstrap_interval(one_system(), num_resamples=0)
    with pytest.raises(ValueError, match="confidence is 95"):
        bootstrap_interval(one_system(), confidence=95)
