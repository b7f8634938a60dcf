"""Metrics in every form say the same."""

import csv
import io
import json
import re

import numpy as np
import pytest

from nearfar.evaluation import evaluate_scores
from nearfar.metric_tables import FORMATS, format_metrics
from nearfar.score_table import ScoreTable

MACHINES = ("{year}/ToyCar_a/00", "{year}/fan/00")


def evaluated(year: int = 2026, *, num_resamples: int = 50, **known: object) -> dict:
    rng = np.random.default_rng(0)
    rows = [
        (machine.format(year=year), f"{domain}_{condition}_{i}.wav", domain, condition)
        for machine in MACHINES
        for domain in ("source", "target")
        for condition in ("normal", "anomaly")
        for i in range(10)
    ]
    names = ("machines", "file_names", "domains", "conditions")
    columns = {
        n: np.array(v, dtype=object) for n, v in zip(names, zip(*rows, strict=True), strict=True)
    }
    columns |= {name: np.full(len(rows), value, dtype=object) for name, value in known.items()}
    scores = rng.normal(size=len(rows)) + (columns["conditions"] == "anomaly")
    columns.setdefault("decisions", (scores > 1).astype(int).astype(object))
    table = ScoreTable(**columns, anomaly_scores=scores, p_values=rng.uniform(size=len(rows)))
    return evaluate_scores(table, num_resamples=num_resamples)


@pytest.mark.parametrize("print_as", FORMATS)
def test_the_official_figures_are_in_every_form_with_their_intervals(print_as: str) -> None:
    metrics = evaluated()
    text = format_metrics(metrics, print_as)
    if print_as == "json":
        assert json.loads(text) == metrics
        return
    if print_as == "csv":
        text = re.sub(r"(\d+\.\d{4})", lambda match: f"{float(match[0]):.2f}", text)
    figures = [metrics["official_score"], *metrics["official_score_interval"]]
    for values in (*metrics["machines"].values(), metrics["means"]):
        for key in ("auc_source", "auc_target", "pauc", "f1_source", "f1_target"):
            assert f"{100 * values[key]:.2f}" in text
            figures += values["intervals"][key]
    assert all(f"{100 * figure:.1f}" in text or f"{100 * figure:.2f}" in text for figure in figures)


def test_the_csv_has_every_metric_of_every_machine() -> None:
    metrics = evaluated()
    rows = list(csv.DictReader(io.StringIO(format_metrics(metrics, "csv"))))
    told = {(row["machine"], row["metric"]): row for row in rows}
    assert len(told) == len(rows) == 3 * 14 + 1
    for machine, values in metrics["machines"].items():
        for key, (low, high) in values["intervals"].items():
            row = told[machine, key]
            expected = [100 * values[key], 100 * low, 100 * high]
            assert [float(row[c]) for c in ("value", "low", "high")] == pytest.approx(
                expected, abs=5.1e-5
            )
    assert float(told["all", "official_score"]["value"]) == pytest.approx(
        100 * metrics["official_score"], abs=5e-5
    )


def test_the_latex_table_is_balanced_and_escapes_names() -> None:
    text = format_metrics(evaluated(), "latex")
    assert text.startswith("\\begin{tabular}{lrrrrr}\n\\toprule\n")
    assert text.endswith("\\bottomrule\n\\end{tabular}")
    assert "2026/ToyCar\\_a/00 & " in text
    assert text.count("{") == text.count("}")
    rows = [line for line in text.splitlines() if line.startswith(("2026", "harmonic", "Machine"))]
    assert len(rows) == 4
    assert {line.count(" & ") for line in rows} == {5}
    assert all(line.endswith(" \\\\") for line in rows)


@pytest.mark.parametrize(
    ("year", "columns", "mean"),
    [
        (2020, ["AUC", "pAUC"], "arithmetic mean"),
        (2021, ["source AUC", "target AUC", "source pAUC", "target pAUC"], "harmonic mean"),
        (2022, ["source AUC", "target AUC", "pAUC"], "harmonic mean"),
    ],
)
def test_a_year_shows_the_metrics_that_make_its_score(
    year: int, columns: list[str], mean: str
) -> None:
    lines = format_metrics(evaluated(year)).splitlines()
    assert re.split(r"\s{2,}", lines[0].strip()) == ["machine", *columns]
    assert lines[3].startswith(mean)
    assert lines[4].startswith("official score ")


def test_columns_stand_below_their_names_and_one_block_follows_the_other() -> None:
    blocks = format_metrics(evaluated()).split("\n\n")
    assert [block.split()[0] for block in blocks] == ["machine", "decisions", "false"]
    for block in blocks[:2]:
        assert len({len(line) for line in block.splitlines()[:4]}) == 1


def test_what_is_missing_is_a_dash_in_every_form() -> None:
    metrics = evaluated(conditions=None, decisions=None)
    for print_as in ("table", "latex", "csv"):
        text = format_metrics(metrics, print_as)
        assert "nan" not in text.lower()
        assert "None" not in text
    assert "official score -" in format_metrics(metrics)
    assert "Official score & \\multicolumn{3}{l}{--}" in format_metrics(metrics, "latex")


def test_without_resampling_there_are_figures_without_intervals() -> None:
    metrics = evaluated(num_resamples=0)
    first = format_metrics(metrics).split("\n\n")[0]
    assert "(" not in first
    assert f"{100 * metrics['means']['pauc']:.2f}" in first
