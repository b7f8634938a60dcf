"""Do thresholds and p-values keep their word? False alarms on untouched normal clips.

For each factory seed: simulate machines, then calibrate two systems of one small encoder, as it is
and fine-tuned by LoRA, in three ways: by clips held out, by leaving each reference out in turn, or
by cross-fitting. Leaving out is wrong for a fine-tuned encoder, and cross-fitting trusts that
encoders of one recipe score on one scale; the table shows by how much either errs, and a plot of
each way, over all factories, lies in the output folder. What is done is not done again.

python -m benchmarks.calibration --output_dir runs/calibration
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from assembly.scorers import ModelScorer, load_scorer
from benchmarks.objectives import private_cache
from benchmarks.small_systems import (
    SYSTEMS,
    make_systems,
    pretrained_encoder,
    remove_recordings,
    run_folder,
)
from data_scripts.near_far import decoded, known, load_near_far
from modeling import THRESHOLDS, Calibration, ReferenceBank
from nearfar.arguments import parse_arguments, script
from nearfar.evaluation import ScoreTable
from nearfar.false_alarms import NOMINAL_RATES, false_alarm_rates
from nearfar.files import read_json, write_json
from nearfar.fused_scores import verdicts
from nearfar.intervals import mean_interval
from nearfar.plots import plot_calibration

# 330 normal clips a machine, of which 102 are held out: enough for a p-value of 1 %.
SIZES: dict[str, Any] = {"num_machines": 3, "source_train": 300, "target_train": 30}
SIZES |= {"test_per_group": 60, "seconds": 6.0, "preset": "challenge"}
HELD_OUT, LEFT_OUT, CROSS_FITTED = ORIGINS = ("held out", "left out", "cross fitted")
WAYS: dict[str, list[Any]] = {  # options of train.py; a reference is left out of a bank held out
    HELD_OUT: ["--held_out_share", 0.31],
    CROSS_FITTED: ["--calibration", "cross_fitted", "--num_folds", 3],
}
RESULT = "false_alarms.json"
DOMAINS = ("source", "target", "all")


@dataclass(kw_only=True)
class CalibrationArguments:
    """Arguments of benchmarks.calibration."""

    output_dir: Path = field(metadata={"help": "Holds one folder per seed, and the plots."})
    seeds: list[int] = field(
        default_factory=lambda: list(range(300, 305)),
        metadata={"help": "Factory seeds (preset challenge); the training seed is the same."},
    )
    encoder_checkpoint: Path | None = field(
        default=None, metadata={"help": "Folder of an encoder; None pre-trains a small one."}
    )
    cross_fitted: bool = field(
        default=True, metadata={"help": "Also by cross-fitting: four trainings more a seed."}
    )
    keep_data: bool = field(default=False, metadata={"help": "Keep recordings and run folders."})


def main() -> None:
    """Work through the seeds, draw the plots, then print the table."""
    logging.basicConfig(level=logging.WARNING)
    args = parse_arguments(CalibrationArguments)
    encoder = pretrained_encoder(args.output_dir, args.encoder_checkpoint, keep_data=args.keep_data)
    origins = [origin for origin in WAYS if origin != CROSS_FITTED or args.cross_fitted]
    results = []
    for seed in args.seeds:
        folder = args.output_dir.resolve() / f"seed_{seed:03d}"
        if not (folder / RESULT).is_file():
            measure_seed(seed, folder, encoder, origins, keep_data=args.keep_data)
        results.append(read_json(folder / RESULT))
    draw(args.output_dir, results)
    print(format_results([result["rows"] for result in results]))


def measure_seed(
    seed: int, folder: Path, encoder: Path, origins: Sequence[str], *, keep_data: bool
) -> None:
    """Simulate a factory, train and calibrate each way; write `false_alarms.json` last."""
    ways = [(system, origin) for system in SYSTEMS for origin in origins]
    systems = {f"{system}, {origin}": [*SYSTEMS[system], *WAYS[origin]] for system, origin in ways}
    make_systems(systems, folder, seed=seed, encoder=encoder, sizes=SIZES)
    rows: list[dict[str, Any]] = []
    p_values: dict[str, dict[str, list[float]]] = {}
    with private_cache(folder / "cache"):
        sets = load_near_far(folder / "data", subsets=["dev"])
        normal = [i for i, row in enumerate(known(sets["test"])) if row["condition"] == "normal"]
        for system, origin in ways:
            scorer = load_scorer(run_folder(folder, f"{system}, {origin}"))
            assert isinstance(scorer, ModelScorer)
            table = scorer.score(decoded(sets["test"].select(normal)), batch_size=16)
            calibrations = {origin: {name: scorer.calibration(name) for name in scorer.machines}}
            if origin == HELD_OUT:
                calibrations[LEFT_OUT] = left_out_calibrations(scorer, sets["train"])
            for way, found in calibrations.items():
                rows += measure(table, found, system=system, origin=way)
                values = verdicts(table.machines, table.anomaly_scores, found).p_values
                p_values[f"{system}, {way}"] = {
                    domain: values[table.domains == domain].tolist() for domain in DOMAINS[:2]
                }
    write_json(folder / RESULT, {"rows": rows, "p_values": p_values})
    remove_recordings(folder, systems, keep_data=keep_data)


def left_out_calibrations(scorer: ModelScorer, clips: Dataset) -> dict[str, Calibration]:
    """Return each machine's calibration by its references, each scored by all others."""
    held_out = {name: scorer.calibration(name).file_names for name in scorer.machines}
    references = [
        index
        for index, row in enumerate(known(clips))
        if row["file_name"] not in held_out[row["machine"]]
    ]
    table = scorer.embed(decoded(clips.select(references)), batch_size=16, description="references")
    # For a fine-tuned encoder the word is a lie, whose price this benchmark measures.
    bank = ReferenceBank(scorer.model.config).fit(table, frozen_encoder=True)
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


def draw(folder: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Draw the calibration plot of each way to calibrate, over all factories."""
    for title in results[0]["p_values"]:
        parts = [
            (values, domain)
            for result in results
            for domain, values in result["p_values"][title].items()
        ]
        p_values = np.concatenate([values for values, _ in parts])
        domains = np.concatenate([np.full(len(v), d, dtype=object) for v, d in parts])
        conditions = np.full(len(p_values), "normal", dtype=object)
        path = folder / f"{title.replace(', ', '_').replace(' ', '_')}.png"
        plot_calibration(path, p_values, conditions, domains, title=title)


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
    once = [row for factory in factories for row in _chosen(factory, "frozen", HELD_OUT, "all")]
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
