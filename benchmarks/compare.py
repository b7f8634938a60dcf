"""Systems side by side: official scores of score folders, and paired differences to the first.

python -m benchmarks.compare fine-tuned=scores/a untrained=scores/b
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nearfar.arguments import script
from nearfar.dcase_task2.bootstrap import BootstrapInterval, bootstrap_difference
from nearfar.evaluation import (
    SCORES_FILE,
    ScoreTable,
    bootstrap_input,
    read_metrics,
    table_year,
)

METRICS = ("auc_source", "auc_target", "pauc")


def compare(folders: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Return a row per system: its mean metrics, official score, and how far the first is ahead.

    Args:
        folders: System name -> score folder, all of the same test clips.

    Raises:
        ValueError: The folders hold scores of different clips, or one has no official score.
    """
    tables = {name: ScoreTable.read_csv(path / SCORES_FILE) for name, path in folders.items()}
    first = next(iter(tables))
    rows = []
    for name, path in folders.items():
        metrics = read_metrics(path)
        if metrics["official_score"] is None:
            raise ValueError(f"{name} ({path}) cannot be compared. {metrics.get('reason')}")
        machines = metrics["machines"].values()
        row = {"system": name, "official_score": metrics["official_score"]}
        row |= {key: float(np.mean([values[key] for values in machines])) for key in METRICS}
        ahead = None if name == first else paired_difference(tables[first], tables[name])
        row["ahead"] = None if ahead is None else ahead._asdict()
        rows.append(row)
    return rows


def paired_difference(table: ScoreTable, other: ScoreTable) -> BootstrapInterval:
    """Return the official score of `table` minus that of `other`, with a paired 95 % interval."""
    inputs, others = bootstrap_input(table), bootstrap_input(other)
    for machine in sorted(set(inputs) | set(others)):
        names = [sorted(t.file_names[t.machines == machine].tolist()) for t in (table, other)]
        if names[0] != names[1]:
            raise ValueError(
                f"{machine}: the two systems scored {len(names[0])} and {len(names[1])} clips that "
                "are not the same. Score both on the same data_dir."
            )
    return bootstrap_difference(
        {name: (*inputs[name], others[name][2]) for name in inputs},
        year=table_year(table),
        num_resamples=2000,
    )


def format_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a readable table in percent; "ahead" is the first system minus this one."""
    lines = [
        f"{'system':<24}{'official':>9}{'src AUC':>9}{'tgt AUC':>9}{'pAUC':>8}"
        "   first system ahead by (95 % interval)"
    ]
    for row in rows:
        values = "".join(f"{100 * row[key]:>9.2f}" for key in ("official_score", *METRICS[:2]))
        line = f"{row['system']:<24}{values}{100 * row['pauc']:>8.2f}"
        if row["ahead"] is not None:
            ahead = {key: 100 * value for key, value in row["ahead"].items()}
            line += f"   {ahead['estimate']:+.2f} ({ahead['low']:+.2f} to {ahead['high']:+.2f})"
        lines.append(line)
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Compare the score folders given as NAME=FOLDER."""
    logging.basicConfig(level=logging.WARNING)
    pairs = [argument.partition("=") for argument in arguments]
    names = {name for name, _, folder in pairs if name and folder}
    if len(names) < max(2, len(pairs)):
        raise ValueError("Give two or more score folders as NAME=FOLDER, each with its own name.")
    print(format_rows(compare({name: Path(folder) for name, _, folder in pairs})))


if __name__ == "__main__":
    import sys

    script(lambda: main(sys.argv[1:]))
