"""A yardstick without a network: nearest neighbour on time-averaged log-mel spectrograms.

python -m benchmarks.log_mel --data_dir DATA --output_dir scores/log_mel
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from data_scripts.near_far import decoded, load_near_far
from modeling import AsdFeatureExtractor
from modeling.detectors import KnnDetector
from modeling.front_ends import FRONT_ENDS
from modeling.spectrogram import KaldiLogMel
from nearfar.arguments import check_names, parse_arguments, script
from nearfar.embeddings import Embedded, EmbeddingTable, extract_embeddings
from nearfar.evaluation import (
    METRICS_FILE,
    ScoreTable,
    evaluate_scores,
    format_metrics,
    write_score_folder,
)
from nearfar.files import whole_folder

NUM_BINS = 128


@dataclass(kw_only=True)
class LogMelArguments:
    """Arguments of benchmarks.log_mel."""

    data_dir: Path = field(metadata={"help": "Recordings in the official layout."})
    output_dir: Path = field(metadata={"help": "The score folder to write."})
    year: int = field(default=2026, metadata={"help": "Of the recordings."})
    front_end: str = field(
        default="near", metadata={"help": f"Before the spectrogram; of {', '.join(FRONT_ENDS)}."}
    )
    num_bands: int = field(
        default=1, metadata={"help": "The 128 bins are compared in so many bands, each by itself."}
    )
    detector_options: dict | str | None = field(
        default=None, metadata={"help": "Of the detector knn; its own: Euclidean, in one pool."}
    )


class LogMelMean(nn.Module):
    """The 128 log-mel bins of what a front end returns, averaged over the clip's own frames.

    Args:
        front_end: Name of the front end.
        num_bands: B, into which the bins are divided.
    """

    def __init__(self, front_end: str, *, num_bands: int = 1) -> None:
        super().__init__()
        self.front_end = FRONT_ENDS[front_end]()
        self.spectrogram = KaldiLogMel()
        self.num_bands = num_bands

    def forward(
        self,
        near_values: Tensor,
        far_values: Tensor,
        attention_mask: Tensor,
        **_: Any,  # noqa: ANN401
    ) -> Embedded:
        """Return embeddings (batch, 1, B, 128 / B)."""
        lengths = attention_mask.sum(dim=1)
        waveforms = self.front_end(near_values, far_values, lengths)
        average = self.spectrogram.time_average(waveforms, lengths)
        return Embedded(average.unflatten(-1, (self.num_bands, -1))[:, None])


def main() -> None:
    """Embed, fit one detector per machine, score, write, print."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    args = parse_arguments(LogMelArguments)
    check_names("front_end", [args.front_end], FRONT_ENDS)
    if args.num_bands < 1 or NUM_BINS % args.num_bands:
        raise ValueError(f"--num_bands {args.num_bands} does not divide {NUM_BINS} mel bins.")
    clips = load_near_far(args.data_dir, year=args.year, subsets=["dev"])
    extractor, model = AsdFeatureExtractor(), LogMelMean(args.front_end, num_bands=args.num_bands)
    references = extract_embeddings(model, decoded(clips["train"]), extractor, batch_size=32)
    tests = extract_embeddings(model, decoded(clips["test"]), extractor, batch_size=32)
    options: Any = {"metric": "euclidean"} | (args.detector_options or {})
    table = nearest_neighbour_scores(references, tests, **options)
    metrics = evaluate_scores(table) | {"seed": None, "recipe": "log_mel"}
    nothing = dict.fromkeys(table.machine_names)
    with whole_folder(args.output_dir, last=METRICS_FILE) as partial:
        write_score_folder(partial, table, metrics, calibration_scores={}, thresholds=nothing)
    print(format_metrics(metrics))


def nearest_neighbour_scores(
    references: EmbeddingTable,
    tests: EmbeddingTable,
    **options: Any,  # noqa: ANN401 - of KnnDetector
) -> ScoreTable:
    """Score test clips by the distance to the nearest reference of their machine, in one pool."""
    scores = np.empty(len(tests))
    for machine in tests.machine_names:
        detector = KnnDetector(**({"per_domain": False} | options))
        detector.fit(Tensor(references.select(machine).embedding))
        rows = tests.machines == machine
        scores[rows] = detector.anomaly_score(Tensor(tests.embedding[rows])).numpy()
    return ScoreTable.of_clips(tests, scores)


if __name__ == "__main__":
    script(main)
