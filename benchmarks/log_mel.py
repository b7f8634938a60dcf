"""A yardstick without a network: nearest neighbour on time-averaged log-mel spectrograms.

python -m benchmarks.log_mel --data_dir DATA --output_dir scores/log_mel
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

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


@dataclass(kw_only=True)
class LogMelArguments:
    """Arguments of benchmarks.log_mel."""

    data_dir: Path = field(metadata={"help": "Recordings in the official layout."})
    output_dir: Path = field(metadata={"help": "The score folder to write."})
    year: int = field(default=2026, metadata={"help": "Of the recordings."})
    front_end: str = field(
        default="near", metadata={"help": f"Before the spectrogram; of {', '.join(FRONT_ENDS)}."}
    )


class LogMelMean(nn.Module):
    """The 128 log-mel bins of what a front end returns, averaged over the clip's own frames."""

    def __init__(self, front_end: str) -> None:
        super().__init__()
        self.front_end = FRONT_ENDS[front_end]()
        self.spectrogram = KaldiLogMel()

    def forward(
        self,
        near_values: Tensor,
        far_values: Tensor,
        attention_mask: Tensor,
        **_: Any,  # noqa: ANN401
    ) -> Embedded:
        """Return embeddings (batch, 1, 1, 128)."""
        lengths = attention_mask.sum(dim=1)
        waveforms = self.front_end(near_values, far_values, lengths)
        return Embedded(self.spectrogram.time_average(waveforms, lengths)[:, None, None])


def main() -> None:
    """Embed, fit one detector per machine, score, write, print."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    args = parse_arguments(LogMelArguments)
    check_names("front_end", [args.front_end], FRONT_ENDS)
    clips = load_near_far(args.data_dir, year=args.year, subsets=["dev"])
    extractor, model = AsdFeatureExtractor(), LogMelMean(args.front_end)
    references = extract_embeddings(model, decoded(clips["train"]), extractor, batch_size=32)
    tests = extract_embeddings(model, decoded(clips["test"]), extractor, batch_size=32)
    table = nearest_neighbour_scores(references, tests, metric="euclidean")
    metrics = evaluate_scores(table) | {"seed": None, "recipe": "log_mel"}
    nothing = dict.fromkeys(table.machine_names)
    with whole_folder(args.output_dir, last=METRICS_FILE) as partial:
        write_score_folder(partial, table, metrics, calibration_scores={}, thresholds=nothing)
    print(format_metrics(metrics))


def nearest_neighbour_scores(
    references: EmbeddingTable, tests: EmbeddingTable, *, metric: Literal["cosine", "euclidean"]
) -> ScoreTable:
    """Score test clips by the distance to the nearest reference of their machine."""
    scores = np.empty(len(tests))
    for machine in tests.machine_names:
        detector = KnnDetector(metric=metric, per_domain=False)
        detector.fit(Tensor(references.select(machine).embedding))
        rows = tests.machines == machine
        scores[rows] = detector.anomaly_score(Tensor(tests.embedding[rows])).numpy()
    return ScoreTable.of_clips(tests, scores)


if __name__ == "__main__":
    script(main)
