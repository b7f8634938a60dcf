"""Fusion of score folders into one: options, weights stated or searched, verdicts."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from nearfar.evaluation import (
    SCORES_FILE,
    ScoreTable,
    read_calibration,
    read_metrics,
    table_year,
)
from nearfar.fused_scores import (
    CalibrationClips,
    fused_calibration,
    fused_table,
    paired_tables,
    search_input,
)
from nearfar.fusion import ScoreFusion, smallest_of
from nearfar.fusion_options import WeightOptions
from nearfar.fusion_run import read_fusion
from nearfar.score_folder import Scored
from nearfar.scorers import Calibrate
from nearfar.weight_search import format_search, search_weights

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class FusionOptions(WeightOptions):
    """What is fused, and with which weights."""

    fuse: list[Path] | None = field(
        default=None,
        metadata={"help": "Instead: score folders, to fuse into one, or run folders likewise."},
    )
    weights_from: Path | None = field(
        default=None, metadata={"help": "A fusion's folder, whose weights and scale to take."}
    )

    def check_weights(self) -> None:
        """Raise ValueError unless two folders or more are fused, each once, by one set of weights.

        A minimum takes none.
        """
        self.check_combination()
        folders = self.fuse or []
        ways = ("weights", "weights_from", "search_weights")
        given = [f"--{name}" for name in ways if getattr(self, name)]
        if not folders and (given or self.combination != "sum"):
            raise ValueError(f"{[*given, '--combination'][0]} goes with --fuse.")
        if twice := [folder for folder in folders if folders.count(folder) > 1]:
            raise ValueError(f"--fuse names {twice[0]} more than once. Give each member once.")
        if folders and (len(folders) < 2 or len(given) != (self.combination == "sum")):
            raise ValueError(
                "--fuse takes two folders or more, and one of --weights, --weights_from, "
                "--search_weights and --combination minimum; got "
                f"{len(folders)} folders and {given or 'none of these'}."
            )


def fuse_folders(args: FusionOptions, calibrate: Calibrate, *, num_resamples: int = 1000) -> Scored:
    """Fuse score folders clip by clip, with weights that are stated or searched.

    Args:
        args: Which folders, and their weights.
        calibrate: Makes thresholds and p-values of fused calibration scores.
        num_resamples: Of the bootstrap intervals of a weight search; 0 takes 1000.

    Raises:
        FileNotFoundError: A folder has no scores.
        ValueError: The folders hold scores of different clips, a machine has no calibration scores,
            or the weights are none.
    """
    folders = args.fuse or []
    tables = paired_tables(
        {str(folder): ScoreTable.read_csv(folder / SCORES_FILE) for folder in folders}
    )
    machines = tables[0].machine_names
    clips = [
        {name: CalibrationClips.from_json(values) for name, values in held.items()}
        for held in (read_calibration(folder, machines) for folder in folders)
    ]
    scores = {name: [member[name].anomaly_scores for member in clips] for name in machines}
    search: dict[str, Any] | None
    if args.search_weights:
        fusion, search = searched_fusion(args, tables, scores, num_resamples=num_resamples)
    else:
        fusion, search = stated_fusion(args)
    fusion.fit(scores)
    calibrations = {
        name: calibrate(fused_calibration(fusion, [member[name] for member in clips], name))
        for name in machines
    }
    names = [folder.resolve().name for folder in folders]
    frozen = all(read_metrics(folder).get("frozen_encoder") for folder in folders)
    provenance = {"seed": None, "recipe": None, "frozen_encoder": frozen}
    table = fused_table(fusion, tables, calibrations)
    return Scored(table, calibrations, provenance, (names, fusion, search))


def searched_fusion(
    options: WeightOptions,
    tables: Sequence[ScoreTable],
    calibration_scores: Mapping[str, Sequence[ArrayLike]],
    *,
    num_resamples: int = 1000,
) -> tuple[ScoreFusion, dict[str, Any]]:
    """Return the fusion with the best weights on labelled clips, not fitted, and how it was found.

    Args:
        options: Of the search.
        tables: Scores of each member, as `paired_tables` returns them.
        calibration_scores: Machine -> scores of each member's calibration clips.
        num_resamples: Of the bootstrap intervals; 0 takes 1000.
    """
    even = [1 / len(tables)] * len(tables)
    normalized = ScoreFusion(even, normalization=options.normalization).fit(calibration_scores)
    found = search_weights(
        search_input(normalized, tables),
        year=table_year(tables[0]),
        method=options.search_method,
        step=options.search_step,
        num_trials=options.num_trials,
        seed=options.search_seed,
        num_resamples=num_resamples or 1000,
    )
    logger.info("%s", format_search(found))
    return ScoreFusion(found.weights, normalization=options.normalization), found.describe()


def stated_fusion(args: FusionOptions) -> tuple[ScoreFusion, dict[str, Any] | None]:
    """Return the fusion that the arguments state, and how its weights were found, if they were."""
    folders = args.fuse or []
    if args.search_weights:
        raise ValueError(
            "Weights are searched on score folders. Fuse the members' score folders of the "
            "development set, then give --weights_from the result."
        )
    if args.combination == "minimum":
        return smallest_of(len(folders), normalization=args.normalization), None
    if args.weights_from is not None:
        fusion, search = read_fusion(args.weights_from)
    else:
        fusion, search = ScoreFusion(args.weights or [], normalization=args.normalization), None
    if len(fusion.weights) != len(folders):
        raise ValueError(
            f"{len(fusion.weights)} weights came for {len(folders)} folders. Give one each."
        )
    return fusion, search
