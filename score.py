"""Score test clips with a run folder, or fuse what several systems scored.

python score.py --model runs/quickstart --data_dir DATA --output_dir scores/quickstart
python score.py --fuse scores/a scores/b --weights 0.45 0.55 --output_dir scores/c
python score.py --fuse runs/a runs/b --weights 0.45 0.55 --output_dir runs/c
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import Accelerator

from assembly.scorers import ModelScorer, calibrate, load_scorer, load_test_clips, scored_by
from data_scripts.ground_truth import read_ground_truth
from nearfar.arguments import check_names, parse_arguments, script
from nearfar.evaluation import evaluate_scores, table_year
from nearfar.fused_folders import FusionOptions, fuse_folders, stated_fusion
from nearfar.fusion_run import write_fusion_run
from nearfar.hub import RUN_FILE
from nearfar.metric_tables import PrintAs, format_metrics
from nearfar.score_folder import Scored, write_scores
from nearfar.score_plots import FROM_CLIPS, PLOTS, ScoredClips, draw_plots
from nearfar.scorers import FusionScorer

logger = logging.getLogger("nearfar.score")


@dataclass(kw_only=True)
class ScoreArguments(FusionOptions):
    """Arguments of score.py."""

    model: Path | None = field(default=None, metadata={"help": "A run folder, to score clips."})
    output_dir: Path = field(metadata={"help": "The score (or run) folder to write."})
    data_dir: Path | None = field(
        default=None,
        metadata={"help": "For --model: recordings as train.py takes them, also from the Hub."},
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


def main() -> None:
    """Score clips or fuse scores, evaluate, write, print; or make a fusion's run folder."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    args = parse_arguments(ScoreArguments)
    check_arguments(args)
    if args.fuse is not None and any((folder / RUN_FILE).is_file() for folder in args.fuse):
        fusion, search = stated_fusion(args)
        members = [load_scorer(folder) for folder in args.fuse]
        scorer = FusionScorer(members, fusion, calibrate)
        calibrations = {name: scorer.calibration(name) for name in scorer.machines}
        write_fusion_run(
            args.output_dir,
            args.fuse,
            fusion,
            search=search,
            calibrations=calibrations,
            metrics=scorer.metrics,
        )
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
    clips = load_test_clips(
        args.data_dir,
        accelerator,
        year=args.year or scorer.recipe["year"],
        machine_types=args.machine_types,
        subsets=args.score_subsets,
        num_proc=args.num_proc,
        resample=args.resample,
    )
    return scored_by(
        scorer,
        clips,
        accelerator,
        batch_size=args.extraction_batch_size,
        num_workers=args.dataloader_num_workers,
    )


if __name__ == "__main__":
    script(main)
