"""Score test clips with a run folder, or fuse what several systems scored.

python score.py --model runs/quickstart --data_dir DATA --output_dir scores/quickstart
python score.py --fuse scores/a scores/b --weights 0.45 0.55 --output_dir scores/c
python score.py --fuse runs/a runs/b --weights 0.45 0.55 --output_dir runs/c
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

from data_scripts.ground_truth import read_ground_truth
from data_scripts.near_far import decoded, known, load_near_far
from modeling import AsdFeatureExtractor, AsdModel, AutoencoderModel, Calibration, ReferenceBank
from nearfar.arguments import check_names, parse_arguments, script
from nearfar.embeddings import EmbeddingTable, extract_embeddings
from nearfar.evaluation import METRICS_FILE, ScoreTable, evaluate_scores, table_year
from nearfar.files import read_json
from nearfar.fused_folders import FusionOptions, fuse_folders, stated_fusion
from nearfar.fused_scores import CalibrationClips, verdicts
from nearfar.fusion_run import read_fusion, write_fusion_run
from nearfar.hub import RUN_FILE, read_run
from nearfar.metric_tables import PrintAs, format_metrics
from nearfar.score_folder import Scored, write_scores
from nearfar.score_plots import FROM_CLIPS, PLOTS, ScoredClips, draw_plots
from nearfar.scorers import FusionScorer, Scorer

logger = logging.getLogger("nearfar.score")

MODELS = {"model": AsdModel, "autoencoder": AutoencoderModel}  # by the kind in run.json


@dataclass(kw_only=True)
class ScoreArguments(FusionOptions):
    """Arguments of score.py."""

    model: Path | None = field(default=None, metadata={"help": "A run folder, to score clips."})
    output_dir: Path = field(metadata={"help": "The score (or run) folder to write."})
    data_dir: Path | None = field(
        default=None, metadata={"help": "Recordings in the official layout, for --model."}
    )
    year: int | None = field(default=None, metadata={"help": "None takes the run's."})
    score_subsets: list[str] = field(
        default_factory=lambda: ["dev"], metadata={"help": "Any of dev, eval_test."}
    )
    machine_types: list[str] | None = field(default=None, metadata={"help": "None takes all."})
    ground_truth: Path | None = field(
        default=None,
        metadata={"help": "What an evaluation set's names do not tell: the official files."},
    )
    resample: bool = field(default=False, metadata={"help": "Resample clips of other rates."})
    num_proc: int | None = field(default=None, metadata={"help": "Processes that prepare data."})
    extraction_batch_size: int = field(default=16, metadata={"help": "Clips embedded at once."})
    dataloader_num_workers: int = field(
        default=0, metadata={"help": "Processes that decode ahead."}
    )
    num_resamples: int = field(default=1000, metadata={"help": "Of the bootstrap; 0: no interval."})
    print_as: PrintAs = field(default="table", metadata={"help": "table, csv, json or latex."})
    plots: list[str] = field(
        default_factory=list,
        metadata={"help": f"Any of {', '.join(PLOTS)}, for each machine; ROC is always drawn."},
    )


@dataclass
class ModelScorer:
    """A run of kind "model" or "autoencoder".

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

    def calibration(self, machine: str) -> Calibration:
        """Return a machine's calibration clips, their scores and its threshold."""
        return self.bank.calibration(machine)

    def score(
        self,
        clips: Sequence[dict[str, Any]],
        accelerator: Accelerator | None = None,
        **options: Any,  # noqa: ANN401
    ) -> ScoreTable:
        """Score decoded clips; `options` go to `extract_embeddings`."""
        return self.score_embeddings(self.embed(clips, accelerator, **options))

    def embed(
        self,
        clips: Sequence[dict[str, Any]],
        accelerator: Accelerator | None = None,
        **options: Any,  # noqa: ANN401
    ) -> EmbeddingTable:
        """Embed decoded clips; `options` go to `extract_embeddings`."""
        strengths = {name: self.bank.front_end_strength(name) for name in self.bank.machines}
        return extract_embeddings(
            self.model,
            clips,
            self.feature_extractor,
            accelerator=accelerator,
            front_end_strength=strengths,
            description="scoring",
            **options,
        )

    def score_embeddings(self, table: EmbeddingTable) -> ScoreTable:
        """Score clips by their embeddings."""
        scores = np.empty(len(table))
        for machine in table.machine_names:
            rows = np.flatnonzero(table.machines == machine)
            embedding = torch.from_numpy(table.embedding[rows])
            scores[rows] = self.bank.anomaly_score(embedding, machine).double().numpy()
        calibrations = {name: self.calibration(name) for name in table.machine_names}
        verdict = verdicts(table.machines, scores, calibrations)
        return ScoreTable.of_clips(table, scores, *verdict)


def main() -> None:
    """Score clips or fuse scores, evaluate, write, print; or make a fusion's run folder."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    args = parse_arguments(ScoreArguments)
    check_arguments(args)
    if args.fuse is not None and any((folder / RUN_FILE).is_file() for folder in args.fuse):
        fusion, search = stated_fusion(args)
        write_fusion_run(args.output_dir, args.fuse, fusion, search=search)
        print(f"written to {args.output_dir}")  # noqa: T201 - the script's answer
        return
    accelerator = Accelerator()
    scored, explained = (
        score_clips(args, accelerator)
        if args.fuse is None
        else (fuse_folders(args, calibrate, num_resamples=args.num_resamples), None)
    )
    if not accelerator.is_main_process:
        return
    table = scored.table
    if args.ground_truth is not None:
        truth = read_ground_truth(args.ground_truth, year=table_year(table))
        table = table.with_ground_truth(truth)
    metrics = evaluate_scores(
        table,
        num_resamples=args.num_resamples,
        num_calibration={name: len(c.file_names) for name, c in scored.calibrations.items()},
    )
    write_scores(args.output_dir, scored._replace(table=table), metrics | scored.provenance)
    draw_plots(
        args.output_dir / "plots",
        args.plots,
        table,
        thresholds={name: c.threshold for name, c in scored.calibrations.items()},
        scored=explained,
    )
    print(format_metrics(metrics, args.print_as))  # noqa: T201 - the script's answer
    logger.info("written to %s", args.output_dir)


def check_arguments(args: ScoreArguments) -> None:
    """Raise ValueError where arguments do not go together."""
    args.check_weights()
    if (args.model is None) == (args.fuse is None):
        raise ValueError("Give either --model, to score clips, or --fuse, to fuse scores.")
    if args.model is not None and args.data_dir is None:
        raise ValueError("--model needs --data_dir, the recordings to score.")
    if args.output_dir.resolve() in [folder.resolve() for folder in args.fuse or ()]:
        raise ValueError(f"{args.output_dir} is a member of the fusion. Give another output_dir.")
    check_names("plots", args.plots, PLOTS)
    if args.fuse is not None and FROM_CLIPS & set(args.plots):
        raise ValueError(
            f"--plots {' '.join(args.plots)} needs a model and its clips, but --fuse reads scores. "
            "Draw them with --model, or take --plots drift."
        )
    if args.search_weights and args.ground_truth is not None:
        raise ValueError(
            "Weights are searched on development labels, never on an evaluation set's ground "
            "truth. Search on the development set, then give --weights_from its score folder."
        )


def score_clips(
    args: ScoreArguments, accelerator: Accelerator
) -> tuple[Scored, ScoredClips | None]:
    """Score the clips of a data folder with a run folder; with a model's, say what of and by."""
    assert args.model is not None  # check_arguments
    scorer = load_scorer(args.model)
    if FROM_CLIPS & set(args.plots) and not isinstance(scorer, ModelScorer):
        raise ValueError(
            f"--plots {' '.join(args.plots)} needs one model, but {args.model} is a fusion. Draw "
            "them of its members, or take --plots drift."
        )
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
    rows, options = decoded(clips), {"batch_size": args.extraction_batch_size}
    options["num_workers"] = args.dataloader_num_workers
    explained = None
    if isinstance(scorer, ModelScorer):
        embeddings = scorer.embed(rows, accelerator, **options)
        table = scorer.score_embeddings(embeddings)
        parts = scorer.model, scorer.feature_extractor, scorer.bank
        explained = ScoredClips(*parts, rows, embeddings)
    else:
        table = scorer.score(rows, accelerator, **options)
    scored = Scored(
        table,
        {name: scorer.calibration(name) for name in table.machine_names},
        {name: scorer.metrics.get(name) for name in ("seed", "recipe", "frozen_encoder")},
    )
    return scored, explained


def calibrate(clips: CalibrationClips) -> Calibration:
    """Return the percentile threshold of fused calibration scores."""
    scores = torch.from_numpy(clips.anomaly_scores)
    return Calibration.fit(scores, clips.file_names, clips.domains, origin=clips.origin)


def load_scorer(folder: Path) -> Scorer:
    """Load a run folder with the local classes, never with the folder's own code.

    Raises:
        FileNotFoundError: It, or a member of it, is not a complete run folder.
        ValueError: It is of a kind that this version cannot score, its bank belongs to another
            encoder, or its weights do not fit its members.
    """
    run = read_run(folder)
    if run["kind"] == "fusion":
        fusion, _ = read_fusion(folder)
        members = [load_scorer(folder / member) for member in run["members"]]
        if len(members) != len(fusion.weights):
            raise ValueError(
                f"{folder} has {len(members)} members but {len(fusion.weights)} weights. Make the "
                "fusion anew with score.py --fuse."
            )
        return FusionScorer(members, fusion, calibrate)
    if run["kind"] not in MODELS:
        raise ValueError(
            f"{folder} is a {run['kind']!r}; this version of score.py scores runs of the kinds "
            f"{[*MODELS, 'fusion']}."
        )
    model = MODELS[run["kind"]].from_pretrained(folder).eval()
    bank = ReferenceBank.from_pretrained(folder)
    bank.check_encoder(model)
    return ModelScorer(
        model=model,
        feature_extractor=AsdFeatureExtractor.from_pretrained(folder),
        bank=bank,
        recipe=yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8")),
        metrics=read_json(folder / METRICS_FILE),
    )


if __name__ == "__main__":
    script(main)
