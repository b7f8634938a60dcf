"""Score test clips with a run folder: challenge CSVs, metrics, a table and plots.

python score.py --model runs/quickstart --data_dir DATA --output_dir scores/quickstart
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import Accelerator

from data_scripts.near_far import decoded, known, load_near_far
from modeling import AsdFeatureExtractor, AsdModel, AutoencoderModel, ReferenceBank
from nearfar.arguments import parse_arguments, script
from nearfar.embeddings import extract_embeddings
from nearfar.evaluation import (
    METRICS_FILE,
    ScoreTable,
    evaluate_scores,
    format_metrics,
    write_score_folder,
)
from nearfar.files import read_json, whole_folder
from nearfar.hub import read_run
from nearfar.submission import check_scores

logger = logging.getLogger("nearfar.score")

MODELS = {"model": AsdModel, "autoencoder": AutoencoderModel}  # by the kind in run.json


@dataclass(kw_only=True)
class ScoreArguments:
    """Arguments of score.py."""

    model: Path = field(metadata={"help": "A run folder written by train.py."})
    data_dir: Path = field(metadata={"help": "Recordings in the official layout."})
    output_dir: Path = field(metadata={"help": "The score folder to write."})
    year: int | None = field(default=None, metadata={"help": "None takes the run's."})
    score_subsets: list[str] = field(
        default_factory=lambda: ["dev"], metadata={"help": "Any of dev, eval_test."}
    )
    machine_types: list[str] | None = field(default=None, metadata={"help": "None takes all."})
    resample: bool = field(default=False, metadata={"help": "Resample clips of other rates."})
    num_proc: int | None = field(default=None, metadata={"help": "Processes that prepare data."})
    extraction_batch_size: int = field(default=16, metadata={"help": "Clips embedded at once."})
    dataloader_num_workers: int = field(
        default=0, metadata={"help": "Processes that decode ahead."}
    )
    num_resamples: int = field(default=1000, metadata={"help": "Of the bootstrap; 0: no interval."})


@dataclass
class Scorer:
    """A system that scores clips: a run folder, loaded.

    Attributes:
        model: Gives embeddings, or scores in their place.
        feature_extractor: Batches waveforms for the model.
        bank: Gives scores, thresholds and p-values from embeddings.
        recipe: All arguments that made the run.
        metrics: The run's own `metrics.json`.
    """

    model: AsdModel | AutoencoderModel
    feature_extractor: AsdFeatureExtractor
    bank: ReferenceBank
    recipe: dict[str, Any]
    metrics: dict[str, Any]

    def check_machines(self, machines: Iterable[str]) -> None:
        """Raise KeyError naming the first machine that the bank does not hold."""
        for machine in sorted(set(machines)):
            self.bank.resolve(machine)

    def score(
        self,
        clips: Sequence[dict[str, Any]],
        accelerator: Accelerator | None = None,
        **options: Any,  # noqa: ANN401
    ) -> ScoreTable:
        """Score decoded clips; `options` go to `extract_embeddings`."""
        strengths = {name: self.bank.front_end_strength(name) for name in self.bank.machines}
        table = extract_embeddings(
            self.model,
            clips,
            self.feature_extractor,
            accelerator=accelerator,
            front_end_strength=strengths,
            description="scoring",
            **options,
        )
        scores, p_values = np.empty(len(table)), np.full(len(table), np.nan)
        decisions = np.full(len(table), None, dtype=object)
        for machine in table.machine_names:
            rows = np.flatnonzero(table.machines == machine)
            embedding = torch.from_numpy(table.embedding[rows])
            scores[rows] = self.bank.anomaly_score(embedding, machine).double().numpy()
            for row in rows if self.bank.threshold(machine) is not None else []:
                decision = self.bank.decide(float(scores[row]), machine)
                decisions[row] = int(decision.anomalous)
                p_values[row] = decision.p_value
        return ScoreTable(
            machines=table.machines,
            file_names=table.file_names,
            domains=table.domains,
            conditions=table.conditions,
            anomaly_scores=scores,
            p_values=p_values,
            decisions=decisions,
        )


def load_scorer(folder: Path) -> Scorer:
    """Load a run folder with the local classes, never with the folder's own code.

    Raises:
        FileNotFoundError: It is not a complete run folder.
        ValueError: It is of a kind that this version cannot score, or its bank belongs to another
            encoder.
    """
    run = read_run(folder)
    if run["kind"] not in MODELS:
        raise ValueError(
            f"{folder} is a {run['kind']!r}; this version of score.py scores runs of the kinds "
            f"{list(MODELS)}."
        )
    model = MODELS[run["kind"]].from_pretrained(folder).eval()
    bank = ReferenceBank.from_pretrained(folder)
    bank.check_encoder(model)
    return Scorer(
        model=model,
        feature_extractor=AsdFeatureExtractor.from_pretrained(folder),
        bank=bank,
        recipe=yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8")),
        metrics=read_json(folder / METRICS_FILE),
    )


def main() -> None:
    """Load the system and the clips, score, evaluate, write, print."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    args = parse_arguments(ScoreArguments)
    accelerator = Accelerator()
    scorer = load_scorer(args.model)
    with accelerator.main_process_first():
        clips = load_near_far(
            args.data_dir,
            year=args.year or scorer.recipe["year"],
            machine_types=args.machine_types,
            subsets=args.score_subsets,
            num_proc=args.num_proc,
            resample=args.resample,
        )["test"]
    scorer.check_machines(row["machine"] for row in known(clips))
    table = scorer.score(
        decoded(clips),
        accelerator,
        batch_size=args.extraction_batch_size,
        num_workers=args.dataloader_num_workers,
    )
    if not accelerator.is_main_process:
        return
    metrics = evaluate_scores(table, num_resamples=args.num_resamples)
    metrics |= {name: scorer.metrics.get(name) for name in ("seed", "recipe", "frozen_encoder")}
    bank = scorer.bank
    thresholds = {name: bank.threshold(name) for name in table.machine_names}
    if without := [name for name, threshold in thresholds.items() if threshold is None]:
        logger.warning("No decisions for %s: no calibration clips, so no threshold.", without)
    with whole_folder(args.output_dir, last=METRICS_FILE) as partial:
        write_score_folder(
            partial,
            table,
            metrics,
            calibration_scores={
                name: bank.calibration_scores(name).tolist() for name in table.machine_names
            },
            thresholds=thresholds,
        )
        complete = [name for name in table.machine_names if name not in without]
        check_scores(partial, expected_clips(table, complete))
    print(format_metrics(metrics))  # noqa: T201 - the script's answer
    print(f"written to {args.output_dir}")  # noqa: T201


def expected_clips(table: ScoreTable, machines: Sequence[str]) -> dict[tuple[str, int], list[str]]:
    """Return (machine type, section) -> names of the clips that the challenge CSVs must list."""
    expected = {}
    for machine in machines:
        _, machine_type, section = machine.split("/")
        expected[machine_type, int(section)] = table.select(machine).file_names.tolist()
    return expected


if __name__ == "__main__":
    script(main)
