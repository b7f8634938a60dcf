"""Metrics of scored test clips, and the folder that keeps scores and metrics.

python -m nearfar.evaluation --scores scores/quickstart --print_as latex
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearfar.arguments import parse_arguments, script
from nearfar.dcase_task2.bootstrap import interval, resampled_metrics, year_keys
from nearfar.dcase_task2.metrics import (
    YEARS,
    decision_metrics,
    official_score,
    overall_decisions,
    overall_metrics,
    score_mean,
    section_metrics,
    within_domain_metrics,
    year_metrics,
)
from nearfar.false_alarms import false_alarm_rates
from nearfar.files import read_json, write_json
from nearfar.metric_tables import PrintAs, format_metrics
from nearfar.plots import plot_calibration, plot_machine
from nearfar.score_table import ScoreTable
from nearfar.submission import write_anomaly_scores, write_decisions

SCORES_FILE, METRICS_FILE, CALIBRATION_FILE = (
    "scores.csv",
    "metrics.json",
    "calibration_scores.json",
)

Section = tuple[NDArray[np.bool_], NDArray[np.object_], NDArray[np.float64]]


def evaluate_scores(
    table: ScoreTable,
    *,
    num_resamples: int = 1000,
    seed: int = 0,
    num_calibration: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Return the metrics of every machine and the official score of their year, in 0..1 units.

    A machine has `auc_source`, `auc_target` and `pauc` (the official ones since 2022), and what
    else its clips allow: `auc` over all clips, `within_domain_*` (official in 2021, a diagnostic
    otherwise), precision, recall and F1 of the decisions in each domain. `means` has the mean over
    machines of each metric that all of them have. Each has its percentile bootstrap interval
    under the same name in `intervals`: over test clips, within machine, domain and condition.
    What the data do not allow is None, with the reason beside it; nothing is made up.

    Args:
        table: Scores of the test clips. Machines that a user enrolled count as of the last year.
        num_resamples: Of the bootstrap; 0 leaves the intervals out.
        seed: Of the bootstrap.
        num_calibration: How many calibration clips each machine has, for `false_alarms`.
    """
    reasons = []
    try:
        year = table_year(table)
    except ValueError as error:
        year = YEARS[-1]
        reasons.append(str(error))
    machines: dict[str, dict[str, Any]] = {}
    resampled: list[dict[str, NDArray[np.float64]]] = []
    sections = []
    for name in table.machine_names:
        clips = _labelled(table.select(name))
        values, reason = _machine_metrics(clips, _year(name))
        if reason is None:
            sections.append([values[key] for key in year_keys(_year(name))])
        else:
            reasons.append(f"{name}: {reason}")
        if num_resamples:
            resampled.append(_resampled(name, clips, values, num_resamples, seed))
            values["intervals"] = {key: list(interval(v)) for key, v in resampled[-1].items()}
        machines[name] = values
    complete = bool(sections) and not reasons
    metrics: dict[str, Any] = {
        "official_score": official_score(sections, year=year) if complete else None,
        "year": year if complete else None,
        "machines": machines,
        "means": _means(list(machines.values()), resampled, year) if machines else {},
        "false_alarms": [
            row._asdict() for row in false_alarm_rates(table, num_calibration=num_calibration)
        ],
    }
    if not complete:
        metrics["reason"] = "The official score needs all metrics. " + " ".join(reasons)
    elif num_resamples:
        official = [np.stack([v[key] for key in year_keys(year)], axis=1) for v in resampled]
        scores = score_mean(np.concatenate(official, axis=1), year=year)
        metrics["official_score_interval"] = list(interval(scores))
    return metrics


def bootstrap_input(table: ScoreTable) -> dict[str, Section]:
    """Return machine -> (anomalous, domains, anomaly_scores) of the clips with a known condition.

    Sorted by file name, so that two systems' tables pair.
    """
    inputs = {}
    for name in table.machine_names:
        clips = _labelled(table.select(name))
        inputs[name] = (clips.conditions == "anomaly", clips.domains, clips.anomaly_scores)
    return inputs


def table_year(table: ScoreTable) -> int:
    """Return the year of all machines of a table, or raise ValueError where they differ."""
    years = sorted({_year(name) for name in table.machine_names})
    if len(years) > 1:
        raise ValueError(f"The machines are of {years}, and each year scores by its own rule.")
    return years[0] if years else YEARS[-1]


def _year(machine: str) -> int:
    first = machine.split("/")[0]
    return int(first) if first.isdecimal() and int(first) in YEARS else YEARS[-1]


def _labelled(clips: ScoreTable) -> ScoreTable:
    """Return the clips of known condition, sorted by file name."""
    rows = np.flatnonzero([condition is not None for condition in clips.conditions])
    return clips.take(rows[np.argsort(clips.file_names[rows])])


def _machine_metrics(clips: ScoreTable, year: int) -> tuple[dict[str, Any], str | None]:
    """Return what labelled clips allow, and why the year's official metrics are not all there."""
    anomalous, scores = clips.conditions == "anomaly", clips.anomaly_scores
    values: dict[str, Any] = {"auc_source": None, "auc_target": None, "pauc": None}
    reason = None
    try:
        year_metrics(year, anomalous, scores, clips.domains)
    except ValueError as error:
        reason = values["reason"] = str(error)
    values |= _defined(lambda: overall_metrics(anomalous, scores)._asdict())
    values |= _defined(lambda: section_metrics(anomalous, scores, clips.domains)._asdict())
    within = _defined(lambda: within_domain_metrics(anomalous, scores, clips.domains)._asdict())
    values |= {f"within_domain_{key}": value for key, value in within.items()}
    if all(decision is not None for decision in clips.decisions):
        called = clips.decisions.astype(bool)
        if any(domain is not None for domain in clips.domains):
            by_domain = _defined(
                lambda: decision_metrics(anomalous, called, clips.domains)._asdict()
            )
            for domain, quality in by_domain.items():
                values |= {f"{key}_{domain}": v for key, v in quality._asdict().items()}
        else:
            values |= _defined(lambda: overall_decisions(anomalous, called)._asdict())
    values["num_normal"] = int((~anomalous).sum())
    values["num_anomalous"] = int(anomalous.sum())
    return values, reason


def _defined(metrics: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return metrics, or nothing where the clips leave them undefined."""
    try:
        return metrics()
    except ValueError:
        return {}


def _resampled(
    name: str, clips: ScoreTable, values: Mapping[str, Any], num_resamples: int, seed: int
) -> dict[str, NDArray[np.float64]]:
    """Return (num_resamples,) of each metric that the machine has."""
    if not len(clips):
        return {}
    decided = all(decision is not None for decision in clips.decisions)
    resampled = resampled_metrics(
        name,
        clips.conditions == "anomaly",
        np.array([domain or "" for domain in clips.domains], dtype=np.str_),
        clips.anomaly_scores,
        decisions=clips.decisions.astype(bool) if decided else None,
        num_resamples=num_resamples,
        seed=seed,
    )
    return {key: v for key, v in resampled.items() if values.get(key) is not None}


def _means(
    machines: list[dict[str, Any]], resampled: list[dict[str, NDArray[np.float64]]], year: int
) -> dict[str, Any]:
    """Return the mean over machines of each metric that all have, with its interval."""
    first = [key for key, value in machines[0].items() if isinstance(value, float)]
    keys = [key for key in first if all(values.get(key) is not None for values in machines)]
    means: dict[str, Any] = {
        key: float(score_mean([values[key] for values in machines], year=year)) for key in keys
    }
    if resampled:
        means["intervals"] = {
            key: list(interval(score_mean(np.stack([v[key] for v in resampled], 1), year=year)))
            for key in keys
        }
    return means


def write_score_folder(
    folder: Path,
    table: ScoreTable,
    metrics: Mapping[str, Any],
    *,
    calibration_scores: Mapping[str, Mapping[str, Any]],
    thresholds: Mapping[str, float | None],
) -> None:
    """Write challenge CSVs, `scores.csv`, `metrics.json`, calibration scores and a plot a machine.

    Args:
        folder: An existing folder (a temporary one: see `files.whole_folder`).
        table: Scores of the test clips.
        metrics: From `evaluate_scores`, and what else is known of the run.
        calibration_scores: Per machine, its calibration clips: `file_names`, `domains`,
            `anomaly_scores` and the threshold's `rule`; a fusion needs them.
        thresholds: Per machine; None where there is none, and then no decisions are written.
    """
    table.write_csv(folder / SCORES_FILE)
    write_json(folder / CALIBRATION_FILE, dict(calibration_scores))
    for machine in table.machine_names:
        clips = table.select(machine)
        _, machine_type, section = machine.split("/")
        names = clips.file_names.tolist()
        write_anomaly_scores(
            folder, machine_type, int(section), names, clips.anomaly_scores.tolist()
        )
        if thresholds[machine] is not None:
            decisions = [int(decision) for decision in clips.decisions]
            write_decisions(folder, machine_type, int(section), names, decisions)
        plot_machine(
            folder / "plots" / f"{machine.replace('/', '_')}.png",
            machine,
            clips.anomaly_scores,
            clips.conditions,
            clips.domains,
            threshold=thresholds[machine],
        )
    plot_calibration(
        folder / "plots" / "calibration.png", table.p_values, table.conditions, table.domains
    )
    write_json(folder / METRICS_FILE, dict(metrics))


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read a score folder's `metrics.json`."""
    path = folder / METRICS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}. Make it with score.py --output_dir {folder}.")
    metrics: dict[str, Any] = read_json(path)
    return metrics


def read_calibration(folder: Path, machines: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Read a score folder's calibration clips, of these machines.

    Raises:
        ValueError: A machine has none.
    """
    path = folder / CALIBRATION_FILE
    held = read_json(path) if path.is_file() else {}
    if lacking := [name for name in machines if not held.get(name, {}).get("anomaly_scores")]:
        raise ValueError(
            f"{path} has no calibration scores of {lacking}, without which there is no scale to "
            "fuse on. Hold normal clips out in training, and score again."
        )
    return {name: held[name] for name in machines}


@dataclass(kw_only=True)
class PrintArguments:
    """Arguments of nearfar.evaluation."""

    scores: Path = field(metadata={"help": "A score folder."})
    print_as: PrintAs = field(default="table", metadata={"help": "table, csv, json or latex."})


def main() -> None:
    """Print the metrics of a score folder."""
    args = parse_arguments(PrintArguments)
    print(format_metrics(read_metrics(args.scores), args.print_as))  # noqa: T201 - the answer


__all__ = [
    "CALIBRATION_FILE",
    "METRICS_FILE",
    "SCORES_FILE",
    "ScoreTable",
    "bootstrap_input",
    "evaluate_scores",
    "format_metrics",
    "read_calibration",
    "read_metrics",
    "table_year",
    "write_score_folder",
]


if __name__ == "__main__":
    script(main)
