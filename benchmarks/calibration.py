"""Do thresholds and p-values keep their word? False alarms on untouched normal clips.

For each factory seed: simulate machines, then calibrate the quickstart system in six ways: fine-
tuned or frozen, by clips held out, by leaving each reference out in turn, or by cross-fitting.
Leaving out is wrong for a fine-tuned encoder, and cross-fitting trusts that encoders of one recipe
score on one scale; the table shows by how much either errs. What is done is not done again.

python -m benchmarks.calibration --output_dir runs/calibration
"""

import logging
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from assembly.scorers import ModelScorer, calibrate, load_scorer
from benchmarks.quickstart import ROOT, TRAIN, run_steps
from data_scripts.near_far import decoded, known, load_near_far
from modeling import THRESHOLDS, Calibration, ReferenceBank
from nearfar.arguments import parse_arguments, script
from nearfar.embeddings import extract_embeddings
from nearfar.evaluation import CALIBRATION_FILE, METRICS_FILE, SCORES_FILE, ScoreTable
from nearfar.false_alarms import NOMINAL_RATES, false_alarm_rates
from nearfar.files import read_json, whole_folder, write_json
from nearfar.fused_scores import CalibrationClips, verdicts
from nearfar.hub import RUN_FILE
from nearfar.intervals import mean_interval
from nearfar.plots import plot_calibration

# 330 normal clips a machine, of which 102 are held out: enough for a p-value of 1 %.
FACTORY = ["--machines", 3, "--source_train", 300, "--target_train", 30]
FACTORY += ["--test_per_group", 60, "--seconds", 6]
HELD_OUT = ["--held_out_share", 0.31]
CROSS_FITTED = ["--calibration", "cross_fitted", "--num_folds", 3]
SYSTEMS: dict[str, list[Any]] = {"fine-tuned": [], "frozen": ["--no_training"]}
ORIGINS = ("held out", "left out", "cross fitted")
RESULT = "false_alarms.json"
DOMAINS = ("source", "target", "all")


@dataclass(kw_only=True)
class CalibrationArguments:
    """Arguments of benchmarks.calibration."""

    output_dir: Path = field(metadata={"help": "Holds what is simulated, trained and scored."})
    seeds: list[int] = field(
        default_factory=lambda: list(range(300, 305)),
        metadata={"help": "Factory seeds; the training seed is the same. 0 to 7 are for tuning."},
    )
    max_steps: int | None = field(default=None, metadata={"help": "Of training; None: the recipe."})
    cross_fitted: bool = field(
        default=True, metadata={"help": "Also by cross-fitting: four trainings more a seed."}
    )
    keep_data: bool = field(default=False, metadata={"help": "Keep recordings and run folders."})


def main() -> None:
    """Work through the seeds, then print the table."""
    logging.basicConfig(level=logging.WARNING)
    args = parse_arguments(CalibrationArguments)
    results = []
    for seed in args.seeds:
        folder = args.output_dir.resolve() / f"seed_{seed:03d}"
        if not (folder / RESULT).is_file():
            measure_seed(seed, folder, args)
        results.append(read_json(folder / RESULT))
    print(format_results(results))


def measure_seed(seed: int, folder: Path, args: CalibrationArguments) -> None:
    """Simulate, train and score one factory; write its plots, and `false_alarms.json` last."""
    data = folder / "data"
    simulate = [sys.executable, "-m", "data_scripts.factory", "--output_dir", data]
    steps: list[list[Any]] = [[*simulate, "--seed", seed, *FACTORY]]
    limit = [] if args.max_steps is None else ["--max_steps", args.max_steps]
    runs = {system: (system, HELD_OUT) for system in SYSTEMS}
    if args.cross_fitted:
        runs |= {f"{system}_cross_fitted": (system, CROSS_FITTED) for system in SYSTEMS}
    for name, (system, way) in runs.items():
        run, scores, options = folder / name, folder / "scores" / name, SYSTEMS[system]
        if not (run / RUN_FILE).is_file():
            train = [*TRAIN, "--data_dir", data, "--output_dir", run, "--seed", seed]
            steps.append([*train, *way, *options, *([] if options else limit)])
        if not (scores / METRICS_FILE).is_file():
            score = [sys.executable, ROOT / "score.py", "--model", run, "--data_dir", data]
            steps.append([*score, "--num_resamples", 0, "--output_dir", scores])
    run_steps(steps, folder / "cache")
    with whole_folder(folder, last=RESULT) as partial:
        rows = []
        for name, (system, way) in runs.items():
            table = ScoreTable.read_csv(folder / "scores" / name / SCORES_FILE)
            calibrations = read_calibrations(folder / "scores" / name)
            by_origin = {"cross fitted": calibrations}
            if way is HELD_OUT:
                others = left_out_calibrations(folder / name, data, calibrations, folder / "cache")
                by_origin = {"held out": calibrations, "left out": others}
            for origin, found in by_origin.items():
                rows += measure(table, found, system=system, origin=origin)
                draw(partial, table, found, f"{system}, {origin}")
        write_json(partial / RESULT, rows)
    if not args.keep_data:
        for used in (data, *(folder / name for name in runs)):
            shutil.rmtree(used)


def read_calibrations(folder: Path) -> dict[str, Calibration]:
    """Return the calibration of each machine of a score folder."""
    held = read_json(folder / CALIBRATION_FILE)
    return {name: calibrate(CalibrationClips.from_json(values)) for name, values in held.items()}


def left_out_calibrations(
    run: Path, data: Path, held_out: Mapping[str, Calibration], cache: Path
) -> dict[str, Calibration]:
    """Return each machine's calibration by its references, each scored by all others."""
    scorer = load_scorer(run)
    assert isinstance(scorer, ModelScorer)
    clips = load_near_far(data, subsets=["dev"], cache_dir=cache)["train"]
    references = [
        index
        for index, row in enumerate(known(clips))
        if row["file_name"] not in held_out[row["machine"]].file_names
    ]
    table = extract_embeddings(
        scorer.model,
        decoded(clips.select(references)),
        scorer.feature_extractor,
        batch_size=16,
        description="references",
    )
    # For a fine-tuned encoder the word is a lie, whose price this benchmark measures.
    bank = ReferenceBank(scorer.model.config).fit(table, frozen_encoder=True)
    shutil.rmtree(cache, ignore_errors=True)
    return {machine: bank.calibration(machine) for machine in bank.machines}


def measure(
    table: ScoreTable, calibrations: Mapping[str, Calibration], *, system: str, origin: str
) -> list[dict[str, Any]]:
    """Return a row for each machine and domain: the share of normal clips that raise an alarm.

    `alarms` has it for each nominal rate of the p-value, and for each rule of the threshold.
    """
    p_values = verdicts(table.machines, table.anomaly_scores, calibrations).p_values
    rates = false_alarm_rates(replace(table, p_values=p_values))
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for rate in rates:
        if rate.machine == "all":
            continue
        row = rows.setdefault(
            (rate.machine, rate.domain),
            {"system": system, "origin": origin, "machine": rate.machine, "domain": rate.domain}
            | {"num_normal": rate.num_normal, "alarms": {}},
        )
        row["alarms"][f"p <= {100 * rate.nominal:g} %"] = rate.measured
    for (machine, domain), row in rows.items():
        kept = (table.machines == machine) & (table.conditions == "normal")
        kept &= (table.domains == domain) | (domain == "all")
        for name, threshold_of in THRESHOLDS.items():
            threshold = threshold_of(calibrations[machine].anomaly_scores.double(), 0.9)
            row["alarms"][name] = float((table.anomaly_scores[kept] > threshold).mean())
    return list(rows.values())


def draw(
    folder: Path, table: ScoreTable, calibrations: Mapping[str, Calibration], title: str
) -> None:
    """Draw the calibration plot of one way to calibrate."""
    p_values = verdicts(table.machines, table.anomaly_scores, calibrations).p_values
    path = folder / f"{title.replace(', ', '_').replace(' ', '_')}.png"
    plot_calibration(path, p_values, table.conditions, table.domains, title=title)


def format_results(results: Iterable[Sequence[Mapping[str, Any]]]) -> str:
    """Return a table: mean alarm rate over machines, with an interval over factories.

    Args:
        results: Of each factory, rows of `measure`.
    """
    factories = list(results)
    columns = list(factories[0][0]["alarms"])
    lines = [f"{'false alarms, %':<24}{'domain':<8}" + "".join(f"{c:>18}" for c in columns)]
    nominal = [f"{100 * rate:g}" for rate in (*NOMINAL_RATES, 0.1, 0.1)]
    lines.append(f"{'nominal':<32}" + "".join(f"{cell:>18}" for cell in nominal))
    for system in SYSTEMS:
        there = {row["origin"] for rows in factories for row in rows}
        for origin in (origin for origin in ORIGINS if origin in there):
            for domain in DOMAINS:
                cells = []
                for column in columns:
                    means = [
                        np.mean([row["alarms"][column] for row in rows])
                        for factory in factories
                        if (rows := _chosen(factory, system, origin, domain))
                    ]
                    cells.append(_cell(100 * np.array(means)))
                name = f"{system}, {origin}"
                lines.append(f"{name:<24}{domain:<8}" + "".join(f"{cell:>18}" for cell in cells))
    once = [row for factory in factories for row in _chosen(factory, "frozen", "held out", "all")]
    normals = sum(row["num_normal"] for row in once)
    lines.append(
        f"{len(factories)} factories, {normals} normal test clips; in brackets the half-width of "
        "the 95 % interval over factories"
    )
    return "\n".join(lines)


def _chosen(
    rows: Sequence[Mapping[str, Any]], system: str, origin: str, domain: str
) -> list[Mapping[str, Any]]:
    wanted = {"system": system, "origin": origin, "domain": domain}
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def _cell(rates: np.ndarray) -> str:
    if len(rates) < 2:
        return f"{rates.mean():.1f}"
    mean, half = mean_interval(rates)
    return f"{mean:.1f} (+-{half:.1f})"


if __name__ == "__main__":
    script(main)
