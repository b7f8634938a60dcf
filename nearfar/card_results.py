"""What score folders add to a card: a table of machines, and figures that the Hub can read."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from huggingface_hub.repocard import ModelCard
from huggingface_hub.repocard_data import EvalResult

from nearfar.files import read_json

HEADING = "## Results"
METRICS = {"auc_source": "source AUC", "auc_target": "target AUC", "pauc": "pAUC"}
TASK_NAME = "Anomalous sound detection"


def with_results(card: str, folders: Sequence[Path]) -> str:
    """Return a card with the results of score folders, instead of those it had.

    Args:
        card: Its section "## Results" is replaced; one without gets it at the end.
        folders: Score folders of one system on the same clips, one for each training seed.

    Raises:
        FileNotFoundError: A folder has no metrics.
        ValueError: Folders are of other machines, or the card has several such sections.
    """
    runs = [read_metrics(folder) for folder in folders]
    machines = sorted(runs[0]["machines"])
    for folder, run in zip(folders, runs, strict=True):
        if sorted(run["machines"]) != machines:
            raise ValueError(
                f"{folder} has scores of {sorted(run['machines'])}, but {folders[0]} of "
                f"{machines}. Give score folders of one system on the same clips."
            )
    section = results_section(runs)
    pattern = re.compile(rf"^{HEADING}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    text, count = pattern.subn(lambda _: f"{HEADING}\n\n{section}\n\n", card)
    if count > 1:
        raise ValueError(f"The card has {count} sections {HEADING!r}. Keep one of them.")
    if not count:
        text = f"{card.rstrip()}\n\n{HEADING}\n\n{section}\n"
    model_card = ModelCard(text)
    metadata: Any = model_card.data
    metadata.model_name = metadata.model_name or "nearfar detector"
    metadata.eval_results = eval_results(runs)
    return str(model_card)


def read_metrics(folder: Path) -> dict[str, Any]:
    """Return the metrics of a score folder."""
    path = folder / "metrics.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no metrics.json. Give folders that score.py wrote.")
    metrics: dict[str, Any] = read_json(path)
    return metrics


def results_section(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return the table: a row for each machine, in per cent.

    Of one seed with the bootstrap interval over test clips where there is one, of several the mean
    over seeds with its standard deviation.
    """
    seeds = ", ".join(str(run.get("seed")) for run in runs)
    if len(runs) == 1:
        told = (
            f"Test clips, in per cent, training seed {seeds}; in brackets the 95 % bootstrap "
            "interval."
        )
    else:
        told = (
            f"Test clips, in per cent: mean (standard deviation) over the training seeds {seeds}."
        )
    lines = [told, "", f"| machine | {' | '.join(METRICS.values())} |", "| --- | --- | --- | --- |"]
    for machine in sorted(runs[0]["machines"]):
        cells = [cell([run["machines"][machine] for run in runs], key) for key in METRICS]
        lines.append(f"| {machine} | {' | '.join(cells)} |")
    official: list[Any] = [run.get("official_score") for run in runs]
    if None not in official:
        interval = runs[0].get("official_score_interval") if len(runs) == 1 else None
        lines += ["", f"Official score: {percent(official, interval)}."]
    return "\n".join(lines)


def cell(values: Sequence[Mapping[str, Any]], key: str) -> str:
    """Return one metric of one machine over seeds, as the table shows it."""
    found: list[Any] = [value.get(key) for value in values]
    if None in found:
        return "none"
    interval = values[0].get("intervals", {}).get(key) if len(values) == 1 else None
    return percent(found, interval)


def percent(values: Sequence[float], interval: Sequence[Any] | None) -> str:
    """Return a mean in per cent, with its spread over seeds or an interval where there is one."""
    text = f"{100 * fmean(values):.2f}"
    if len(values) > 1:
        return f"{text} ({100 * stdev(values):.2f})"
    if interval is not None and None not in interval:
        low, high = interval
        return f"{text} ({100 * low:.2f} to {100 * high:.2f})"
    return text


def eval_results(runs: Sequence[Mapping[str, Any]]) -> list[EvalResult]:
    """Return the figures for `model-index`: means over seeds, in 0..1 units."""
    year = runs[0].get("year")
    name = f"DCASE {year} Task 2 layout" if year else "DCASE Task 2 layout"

    def result(kind: str, metric: str, values: Sequence[float], machine: str | None) -> EvalResult:
        return EvalResult(
            task_type="audio-classification",
            task_name=TASK_NAME,
            dataset_type="dcase-task2",
            dataset_name=name,
            dataset_config=machine,
            dataset_split="test",
            metric_type=kind,
            metric_name=metric,
            metric_value=round(fmean(values), 6),
        )

    results = []
    for machine in sorted(runs[0]["machines"]):
        for key, metric in METRICS.items():
            values: list[Any] = [run["machines"][machine].get(key) for run in runs]
            if None not in values:
                results.append(result(key, metric, values, machine))
    official: list[Any] = [run.get("official_score") for run in runs]
    if None not in official:
        results.append(result("official_score", "official score", official, None))
    return results
