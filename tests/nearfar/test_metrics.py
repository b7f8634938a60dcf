"""The official metric: published values, identities, and a second implementation in plain loops."""

import itertools
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import nearfar
from nearfar import schema
from nearfar.dcase_task2 import metrics
from nearfar.dcase_task2.bootstrap import weighted_metrics
from nearfar.metrics import (
    SectionMetrics,
    decision_metrics,
    harmonic_mean,
    official_score,
    overall_decisions,
    overall_metrics,
    section_metrics,
    within_domain_metrics,
    year_metrics,
)

ROOT = Path(__file__).parents[2]

# AUC source / AUC target / pAUC per machine in percent, as the organisers published them for 2026.
EVAL_MSE = """71.26/46.80/55.11 59.02/64.34/59.79 64.84/61.42/58.11 69.48/88.38/61.79
    67.14/44.02/50.89"""
EVAL_MAHALA = """72.76/54.28/59.26 43.98/39.40/52.79 60.34/43.76/50.58 67.66/87.20/63.89
    69.80/45.10/49.47"""
DEV_MSE = """75.62/37.87/54.03 69.62/61.20/55.89 62.34/59.56/59.85 61.45/46.94/53.33
    68.23/49.78/52.94 67.25/45.05/50.38 67.74/68.78/55.08"""
DEV_MAHALA = """77.28/53.17/58.25 69.49/66.62/53.47 65.92/62.28/60.42 60.00/45.09/52.29
    74.48/52.74/53.97 66.36/49.18/50.36 56.60/56.50/50.20"""

Section = tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.str_]]


def table(text: str) -> list[SectionMetrics]:
    return [
        SectionMetrics(*(float(percent) / 100 for percent in cell.split("/")))
        for cell in text.split()
    ]


def random_section(seed: int, *, num_clips: int = 60, levels: int = 12) -> Section:
    """Return anomalous, scores with many ties, domains; every domain has normals and anomalies."""
    rng = np.random.default_rng(seed)
    anomalous = rng.random(num_clips) < rng.uniform(0.2, 0.8)
    domains = np.where(rng.random(num_clips) < rng.uniform(0.2, 0.8), "source", "target")
    anomalous[:4] = [False, False, True, True]
    domains[:4] = ["source", "target", "source", "target"]
    scores = rng.integers(levels, size=num_clips) / 7 + anomalous * rng.uniform(-0.5, 1.0)
    return anomalous, scores, domains


def official_section(seed: int) -> Section:
    """Return 200 clips as in the challenge: 50 of each domain and condition, no ties."""
    rng = np.random.default_rng(seed)
    anomalous = np.repeat([False, True], 100)
    domains = np.tile(["source", "target"], 100)
    return anomalous, rng.normal(size=200) + 0.7 * anomalous, domains


# ---- golden


@pytest.mark.parametrize(
    ("values", "published"),
    [(EVAL_MSE, 0.5980289616592438), (EVAL_MAHALA, 0.5476277174340481)],
    ids=["MSE", "MAHALA"],
)
def test_the_official_evaluation_baselines_are_reproduced(values: str, published: float) -> None:
    # The inputs are rounded to 0.005 points, so the score is known to about as much.
    assert len(table(values)) == 5
    assert official_score(table(values)) == pytest.approx(published, abs=2e-5)


@pytest.mark.parametrize(
    ("values", "published"), [(DEV_MSE, 56.66), (DEV_MAHALA, 57.66)], ids=["MSE", "MAHALA"]
)
def test_the_official_development_baselines_are_reproduced(values: str, published: float) -> None:
    assert len(table(values)) == 7
    assert round(100 * official_score(table(values)), 2) == published


def test_the_official_score_is_the_combination_of_two_harmonic_means() -> None:
    sections = table(EVAL_MSE)
    aucs = float(harmonic_mean([value for section in sections for value in section[:2]]))
    paucs = float(harmonic_mean([section.pauc for section in sections]))
    assert official_score(sections) == pytest.approx(15 / (10 / aucs + 5 / paucs), rel=1e-12)


# ---- definitions


def test_a_domains_auc_keeps_the_anomalies_of_both_domains() -> None:
    anomalous = [0, 0, 0, 0, 1, 1]
    domains = ["source", "source", "target", "target", "source", "target"]
    result = section_metrics(anomalous, [0.1, 0.2, 0.6, 0.7, 0.65, 0.9], domains)
    assert result.auc_source == 1.0
    assert result.auc_target == 0.75  # 3 of 4 pairs; without the source anomaly it would be 1


def loop_auc(normals: list[float], anomalies: list[float]) -> float:
    """Return the share of pairs in the right order, a tie counting half."""
    wins = sum(
        1.0 if high > low else 0.5 if high == low else 0.0
        for low, high in itertools.product(normals, anomalies)
    )
    return wins / (len(normals) * len(anomalies))


def loop_pauc(normals: list[float], anomalies: list[float], max_fpr: float) -> float:
    """Return the standardised area under the ROC curve, walked threshold by threshold."""
    points = [(0.0, 0.0)]
    for threshold in sorted({*normals, *anomalies}, reverse=True):
        false_alarms = sum(score >= threshold for score in normals) / len(normals)
        hits = sum(score >= threshold for score in anomalies) / len(anomalies)
        points.append((false_alarms, hits))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 >= max_fpr:
            break
        if x1 > max_fpr:  # the curve is cut at max_fpr, between two thresholds
            y1 = y0 + (y1 - y0) * (max_fpr - x0) / (x1 - x0)
            x1 = max_fpr
        area += (x1 - x0) * (y0 + y1) / 2
    chance = max_fpr**2 / 2
    return 0.5 * (1 + (area - chance) / (max_fpr - chance))


def loop_decisions(anomalous: list[bool], called: list[bool]) -> tuple[float, float, float]:
    """Return precision, recall and F1, counted one clip after the other."""
    hits = sum(flag and call for flag, call in zip(anomalous, called, strict=True))
    precision = hits / sum(called) if any(called) else 0.0
    recall = hits / sum(anomalous)
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    return precision, recall, f1


def random_set(
    seed: int,
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.str_], NDArray[np.bool_]]:
    """Return anomalous, scores, domains, decisions of 6 to 45 clips.

    Two sets in three have ties, some of all scores; two in seven lack a condition, a domain, or a
    condition of a domain.
    """
    rng = np.random.default_rng([seed, 1])
    num_clips = int(rng.integers(6, 46))
    anomalous = rng.random(num_clips) < rng.uniform(0.1, 0.9)
    domains = np.where(rng.random(num_clips) < rng.uniform(0.1, 0.9), "source", "target")
    if seed % 7 < 2:
        kept = [~anomalous, anomalous, domains == "source", domains == "target"]
        kept += [~(anomalous & kept[2]), ~(~anomalous & kept[3])]
        rows = kept[seed // 7 % 6]
        anomalous, domains = anomalous[rows], domains[rows]
    scores = rng.normal(size=len(anomalous)) + anomalous * rng.uniform(-2, 4)
    levels = (None, None, 4, 1, 0.4, 0)[seed % 6]
    scores = scores if levels is None else np.round(levels * scores)
    return anomalous, scores, domains, scores > rng.uniform(-1, 2)


def loop_values(
    anomalous: NDArray, scores: NDArray, domains: NDArray, called: NDArray, max_fpr: float
) -> dict[str, float]:
    """Return every metric that is defined, by the names of `weighted_metrics`."""
    anomalies, normals = scores[anomalous].tolist(), scores[~anomalous].tolist()
    values = {}
    if anomalies and normals:
        values["auc"] = loop_auc(normals, anomalies)
        values["pauc"] = loop_pauc(normals, anomalies, max_fpr)
    for domain in schema.DOMAINS:
        own = domains == domain
        own_anomalies = scores[anomalous & own].tolist()
        own_normals = scores[~anomalous & own].tolist()
        if own_normals and anomalies:
            values[f"auc_{domain}"] = loop_auc(own_normals, anomalies)
        if own_normals and own_anomalies:
            values[f"within_domain_auc_{domain}"] = loop_auc(own_normals, own_anomalies)
            pauc = loop_pauc(own_normals, own_anomalies, max_fpr)
            values[f"within_domain_pauc_{domain}"] = pauc
        if own_anomalies:
            quality = loop_decisions(anomalous[own].tolist(), called[own].tolist())
            for name, value in zip(("precision", "recall", "f1"), quality, strict=True):
                values[f"{name}_{domain}"] = value
    return values


WITHIN = tuple(f"within_domain_{m}_{d}" for m in ("auc", "pauc") for d in schema.DOMAINS)
QUALITY = tuple(f"{m}_{d}" for d in schema.DOMAINS for m in ("precision", "recall", "f1"))
SINCE_2022 = ("auc_source", "auc_target", "pauc")


def defined(names: tuple[str, ...], function: Callable[[], Iterable[float]]) -> dict[str, float]:
    """Return the values of a function by name, or nothing where it says they are undefined."""
    try:
        return dict(zip(names, function(), strict=True))
    except ValueError as error:
        if "undefined" not in str(error):
            raise
        return {}


def exact_ranking(
    which: int, anomalous: NDArray, scores: NDArray, domains: NDArray, max_fpr: float
) -> tuple[tuple[str, ...], dict[str, float]]:
    """Return the names and the values of one of the three kinds of official metrics."""
    ranked = (anomalous, scores, domains)
    if which == 0:
        names: tuple[str, ...] = ("auc", "pauc")
        return names, defined(names, lambda: overall_metrics(*ranked[:2], max_fpr=max_fpr))
    if which == 1:
        return SINCE_2022, defined(SINCE_2022, lambda: section_metrics(*ranked, max_fpr=max_fpr))
    return WITHIN, defined(WITHIN, lambda: within_domain_metrics(*ranked, max_fpr=max_fpr))


def exact_decisions(*arguments: NDArray) -> tuple[tuple[str, ...], dict[str, float]]:
    """Return the names and the values of precision, recall and F1 in both domains."""
    return QUALITY, defined(QUALITY, lambda: itertools.chain(*decision_metrics(*arguments)))


def test_plain_loops_give_the_same_values_on_1000_random_sets() -> None:
    complete: list[dict[str, float]] = []
    for seed in range(1000):
        anomalous, scores, domains, called = random_set(seed)
        max_fpr = 0.25 if seed % 5 == 0 else 0.1
        expected = loop_values(anomalous, scores, domains, called, max_fpr)
        # The exact functions are slow, so each set goes to one of the four.
        names, values = (
            exact_decisions(anomalous, called, domains)
            if seed % 4 == 3
            else exact_ranking(seed % 4, anomalous, scores, domains, max_fpr)
        )
        due = {name: expected[name] for name in names if name in expected}
        # A function gives all its values or none.
        assert values == pytest.approx(due if len(due) == len(names) else {}, abs=1e-12), seed
        once = np.ones((1, len(scores)), dtype=np.int64)
        fast = weighted_metrics(anomalous, scores, domains, once, decisions=called, max_fpr=max_fpr)
        assert {k: v[0] for k, v in fast.items()} == pytest.approx(expected, abs=1e-12), seed
        if len(expected) == len({"auc", *SINCE_2022, *WITHIN, *QUALITY}):
            complete.append(expected)
    assert 400 < len(complete) < 800  # the rest lacked something
    for start in range(0, len(complete) - 3, 3):
        challenge = complete[start : start + 3]
        for year, names in {2020: ("auc", "pauc"), 2021: WITHIN, 2023: SINCE_2022}.items():
            values = [[section[name] for name in names] for section in challenge]
            everything = [value for section in values for value in section]
            by_hand = sum(everything) / len(everything)
            if year != 2020:
                floored = [max(value, sys.float_info.epsilon) for value in everything]
                by_hand = len(floored) / sum(1 / value for value in floored)
            assert official_score(values, year=year) == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize("year", range(2020, 2027))
def test_a_years_metrics_are_those_of_its_definition(year: int) -> None:
    anomalous, scores, domains = random_section(3)
    expected = {2020: overall_metrics(anomalous, scores)}
    expected[2021] = within_domain_metrics(anomalous, scores, domains)
    result = year_metrics(year, anomalous, scores, domains)
    assert result == expected.get(year, section_metrics(anomalous, scores, domains))
    unknown = np.full(len(scores), None)
    if year == 2020:  # it had no domains
        assert year_metrics(year, anomalous, scores, unknown) == result
    else:
        with pytest.raises(ValueError, match="domains are neither"):
            year_metrics(year, anomalous, scores, unknown)


def test_the_years_differ_where_a_source_anomaly_hides_among_target_normals() -> None:
    anomalous = [0, 0, 1, 0, 0, 1]
    domains = ["source"] * 3 + ["target"] * 3
    scores = [0.1, 0.2, 0.5, 0.6, 0.7, 0.9]
    assert within_domain_metrics(anomalous, scores, domains) == (1, 1, 1, 1)
    assert section_metrics(anomalous, scores, domains).auc_target == 0.5


def test_a_year_without_a_challenge_or_with_other_metrics_is_refused() -> None:
    anomalous, scores, domains = random_section(0)
    for year in (2019, 2027):
        with pytest.raises(
            ValueError, match=f"year={year} has no official score. Choose from 2020"
        ):
            year_metrics(year, anomalous, scores, domains)
        with pytest.raises(ValueError, match=f"year={year} has no official score"):
            official_score([[0.5, 0.5]], year=year)
    section = section_metrics(anomalous, scores, domains)
    with pytest.raises(ValueError, match=r"score of 2021 takes 4 metrics .* shape \(1, 3\)"):
        official_score([section], year=2021)
    with pytest.raises(ValueError, match=r"score of 2024 takes 3 metrics .* shape \(3,\)"):
        official_score(section, year=2024)


def test_a_domain_without_anomalies_is_named_where_the_year_needs_them() -> None:
    with pytest.raises(ValueError, match=r"In the target domain: .* needs an anomalous clip"):
        within_domain_metrics([0, 1, 0], [1, 2, 3], ["source", "source", "target"])


# ---- identities


@pytest.mark.parametrize("seed", range(5))
def test_with_equal_numbers_of_normals_the_domain_aucs_average_to_the_overall_auc(
    seed: int,
) -> None:
    anomalous, scores, domains = official_section(seed)
    result = section_metrics(anomalous, scores, domains)
    overall = overall_metrics(anomalous, scores)
    assert result.auc_source + result.auc_target == pytest.approx(2 * overall.auc, abs=1e-12)
    assert result.pauc == overall.pauc


@pytest.mark.parametrize("seed", range(5))
def test_turning_the_sign_turns_an_auc_into_its_rest(seed: int) -> None:
    anomalous, scores, domains = random_section(seed)
    result = section_metrics(anomalous, scores, domains)
    turned = section_metrics(anomalous, -scores, domains)
    assert turned.auc_source == pytest.approx(1 - result.auc_source, abs=1e-12)
    assert turned.auc_target == pytest.approx(1 - result.auc_target, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_only_the_order_of_the_scores_matters(seed: int) -> None:
    anomalous, scores, domains = random_section(seed)
    result = section_metrics(anomalous, scores, domains)
    for same_order in (
        np.exp(scores),
        1e-6 * scores - 3,
        np.unique(scores, return_inverse=True)[1],
    ):
        assert section_metrics(anomalous, same_order, domains) == result


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_clips_does_not_matter(seed: int) -> None:
    anomalous, scores, domains = random_section(seed)
    shuffled = np.random.default_rng(seed).permutation(len(scores))
    result = section_metrics(anomalous, scores, domains)
    assert section_metrics(anomalous[shuffled], scores[shuffled], domains[shuffled]) == (
        pytest.approx(result, abs=1e-12)
    )


def test_the_best_the_worst_and_the_useless_score_have_their_known_values() -> None:
    anomalous, _, domains = official_section(0)
    assert section_metrics(anomalous, anomalous, domains) == (1, 1, 1)
    worst = section_metrics(anomalous, ~anomalous, domains)
    # McClish's standardisation ends at 0.5 * (1 - 0.05 / 0.95), not at 0.
    assert worst == pytest.approx((0, 0, 0.47368421052631576), abs=1e-12)
    assert section_metrics(anomalous, np.zeros(200), domains) == pytest.approx((0.5, 0.5, 0.5))


def test_one_clip_moves_the_pauc_by_no_more_than_its_bound() -> None:
    anomalous, scores, domains = official_section(1)
    before = section_metrics(anomalous, scores, domains).pauc
    changes = []
    for clip in np.flatnonzero(~anomalous)[::5]:
        moved = scores.copy()
        moved[clip] = 99.0
        changes.append(abs(section_metrics(anomalous, moved, domains).pauc - before))
    assert 0 < max(changes) <= 0.5 * 0.01 / 0.095 + 1e-12


def test_a_zero_in_the_mean_counts_as_float_epsilon() -> None:
    perfect_but_one = [SectionMetrics(0.0, 1.0, 1.0)]
    assert official_score(perfect_but_one) == pytest.approx(3 * sys.float_info.epsilon)


# ---- decisions


def test_decisions_are_judged_within_their_domain() -> None:
    anomalous = [1, 1, 0, 0, 1, 1, 0, 0]
    domains = ["source"] * 4 + ["target"] * 4
    result = decision_metrics(anomalous, [1, 0, 0, 0, 1, 1, 1, 0], domains)
    assert result.source == (1.0, 0.5, pytest.approx(2 / 3))
    assert result.target == (pytest.approx(2 / 3), 1.0, pytest.approx(0.8))


def test_without_domains_decisions_are_judged_over_all_clips() -> None:
    result = overall_decisions([1, 1, 0, 0, 1], [1, 0, 1, 0, 1])
    assert result == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    with pytest.raises(ValueError, match="Recall in this machine is undefined"):
        overall_decisions([0, 0], [0, 1])


def test_calling_everything_anomalous_gives_an_f1_of_two_thirds() -> None:
    anomalous, _, domains = official_section(0)
    result = decision_metrics(anomalous, np.ones(200), domains)
    assert result.source.f1 == result.target.f1 == pytest.approx(2 / 3)


def test_calling_nothing_anomalous_gives_zeros_as_officially() -> None:
    anomalous, _, domains = official_section(0)
    assert decision_metrics(anomalous, np.zeros(200), domains).source == (0, 0, 0)


# ---- what is not defined


@pytest.mark.parametrize(
    ("anomalous", "domains", "missing"),
    [
        ([0, 0], ["source", "target"], "it needs an anomalous clip"),
        ([0, 1], ["source", "target"], "it needs a normal clip of the target domain"),
        ([1, 0], ["source", "target"], "it needs a normal clip of the source domain"),
        ([1, 1], ["source", "target"], "source domain and a normal clip of the target domain"),
        ([0], ["source"], "an anomalous clip and a normal clip of the target domain"),
    ],
)
def test_an_undefined_auc_is_an_error_that_names_what_is_missing(
    anomalous: list[int], domains: list[str], missing: str
) -> None:
    with pytest.raises(ValueError, match=missing):
        section_metrics(anomalous, np.arange(len(anomalous)), domains)


def test_an_undefined_overall_auc_or_recall_is_an_error() -> None:
    with pytest.raises(ValueError, match="needs a normal clip"):
        overall_metrics([1, 1], [0.1, 0.2])
    with pytest.raises(ValueError, match="needs an anomalous clip"):
        overall_metrics([0, 0], [0.1, 0.2])
    with pytest.raises(ValueError, match="Recall in the target domain is undefined"):
        decision_metrics([1, 0, 0], [1, 0, 1], ["source", "source", "target"])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_cannot_be_ranked_are_counted(bad: float) -> None:
    anomalous, scores, domains = random_section(0)
    scores[[5, 9]] = bad
    with pytest.raises(ValueError, match="2 of 60 anomaly scores are NaN or infinite"):
        section_metrics(anomalous, scores, domains)
    with pytest.raises(ValueError, match="2 of 60 anomaly scores"):
        overall_metrics(anomalous, scores)


def test_arrays_that_do_not_fit_together_are_refused_by_name() -> None:
    anomalous, scores, domains = random_section(0)
    with pytest.raises(ValueError, match=r"anomaly_scores has shape \(59,\); expected \(60,\)"):
        section_metrics(anomalous, scores[:-1], domains)
    with pytest.raises(ValueError, match=r"domains has shape \(59,\); expected \(60,\)"):
        section_metrics(anomalous, scores, domains[:-1])
    with pytest.raises(ValueError, match=r"anomalous has shape \(60, 1\)"):
        section_metrics(anomalous[:, None], scores, domains)
    with pytest.raises(ValueError, match="59 decisions came for 60 clips"):
        decision_metrics(anomalous, anomalous[:-1], domains)


@pytest.mark.parametrize("unknown", [None, -1, 2, 0.5, "anomaly"])
def test_a_clip_of_unknown_condition_is_not_taken_for_a_normal_one(unknown: object) -> None:
    with pytest.raises(ValueError, match="1 of 3 values of anomalous are neither 0 nor 1"):
        overall_metrics(np.array([0, 1, unknown], dtype=object), [1, 2, 3])


@pytest.mark.parametrize("unknown", [None, "", "both"])
def test_a_clip_of_unknown_domain_is_refused_with_the_way_out(unknown: str | None) -> None:
    domains = np.array(["source", "target", "source", unknown], dtype=object)
    with pytest.raises(ValueError, match=r"1 of 4 domains are neither .* use overall_metrics"):
        section_metrics([0, 0, 1, 1], [1, 2, 3, 4], domains)


def test_a_score_of_nothing_or_of_percentages_is_refused() -> None:
    with pytest.raises(ValueError, match="no section"):
        official_score([])
    with pytest.raises(ValueError, match="Divide percentages by 100"):
        official_score([SectionMetrics(71.26, 46.80, 55.11)])
    with pytest.raises(ValueError, match=r"0\.\.1"):
        official_score([SectionMetrics(0.7, float("nan"), 0.5)])


# ---- the package and `evaluate`


def test_the_domains_are_the_schemas() -> None:
    assert metrics._DOMAINS == schema.DOMAINS


def test_the_version_is_that_of_the_distribution() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert nearfar.__version__ == project["version"]


def test_importing_the_schema_imports_nothing_heavy() -> None:
    code = (
        "import sys, nearfar.schema; "
        "print(sorted({'numpy', 'scipy', 'sklearn', 'torch', 'datasets'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    output = subprocess.check_output([sys.executable, "-c", code], text=True, env=environment)
    assert output.strip() == "[]"


IN_ANOTHER_PROCESS = """
import json, sys

sys.modules["transformers"] = None  # evaluate would import its pipelines, slowly, for nothing here
import evaluate
del sys.modules["transformers"]

columns = json.load(open(sys.argv[2]))
metric = evaluate.load(sys.argv[1])
half = len(columns["predictions"]) // 2
for part in (slice(None, half), slice(half, None)):
    metric.add_batch(**{name: values[part] for name, values in columns.items()})
assert "nearfar" not in sys.modules
results = [metric.compute(max_fpr=0.2)]
decisions = [int(score > 0.5) for score in columns["predictions"]]
for year in (2020, 2021, 2024):
    results.append(metric.compute(year=year, decisions=decisions, **columns))
try:
    metric.compute(decisions=decisions[1:], **columns)
except ValueError as error:
    results.append(str(error))
json.dump(results, open(sys.argv[3], "w"))
"""


def test_evaluate_loads_the_folder_offline_and_agrees_with_the_functions(tmp_path: Path) -> None:
    sections = {
        f"2026/{name}/00": random_section(seed) for seed, name in enumerate(["fan", "pump"])
    }
    columns = {
        "predictions": [score for _, scores, _ in sections.values() for score in scores.tolist()],
        "references": [int(flag) for flags, _, _ in sections.values() for flag in flags],
        "domains": [domain for _, _, domains in sections.values() for domain in domains.tolist()],
        "machines": [name for name, section in sections.items() for _ in section[0]],
    }
    (tmp_path / "columns.json").write_text(json.dumps(columns))
    folder = ROOT / "nearfar" / "dcase_task2"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    subprocess.run(
        [sys.executable, "-c", IN_ANOTHER_PROCESS, str(folder), "columns.json", "result.json"],
        cwd=tmp_path,
        env=environment,
        check=True,
    )
    result, *of_years, refusal = json.loads((tmp_path / "result.json").read_text())
    expected = {name: section_metrics(*section, max_fpr=0.2) for name, section in sections.items()}
    assert result == {
        "official_score": official_score(list(expected.values())),
        "machines": {name: values._asdict() for name, values in expected.items()},
    }
    for year, found in zip((2020, 2021, 2024), of_years, strict=True):
        metrics_of_year = [year_metrics(year, *section) for section in sections.values()]
        assert found["official_score"] == official_score(metrics_of_year, year=year)
        for (name, section), values in zip(sections.items(), metrics_of_year, strict=True):
            anomalous, scores, domains = section
            quality: Any = overall_decisions(anomalous, scores > 0.5)._asdict()
            if year != 2020:
                by_domain = decision_metrics(anomalous, scores > 0.5, domains)
                quality = {d: q._asdict() for d, q in by_domain._asdict().items()}
            assert found["machines"][name] == values._asdict() | {"decisions": quality}
    assert refusal.startswith("decisions has shape (119,); expected (120,)")
