"""Time and peak memory of embedding a machine's clips: `python -m benchmarks.extraction`.

The clips are noise, made one by one as they are asked for; weights are random. Memory is bounded if
the peak after all clips is that after the first of them.
"""

import logging
import os
import platform
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from benchmarks.encoder_sizes import ENCODERS
from benchmarks.memory import peak_memory_gib
from modeling import AsdConfig, AsdFeatureExtractor, AsdModel
from nearfar.arguments import check_names, parse_arguments, script
from nearfar.embeddings import extract_embeddings


@dataclass(kw_only=True)
class ExtractionArguments:
    """Arguments of benchmarks.extraction."""

    encoder: str = field(default="beats_base", metadata={"help": f"Of {', '.join(ENCODERS)}."})
    clips: int = field(
        default=1200, metadata={"help": "As many as a machine has in the challenge."}
    )
    seconds: float = field(default=10.0, metadata={"help": "Length of a clip."})
    batch_size: int = 16


class NoiseClips:
    """Clips of noise on both channels; how much memory was held when each was asked for.

    Args:
        count: Of clips.
        num_samples: Of each channel.

    Attributes:
        peaks: In GiB, one for each clip that was made.
    """

    def __init__(self, count: int, num_samples: int) -> None:
        self.count = count
        self.num_samples = num_samples
        self.peaks: list[float] = []

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.peaks.append(peak_memory_gib())
        pair = np.random.default_rng(index).normal(scale=0.1, size=(2, self.num_samples))
        near, far = pair.astype(np.float32)
        return {
            "near": near,
            "far": far,
            "file_name": f"{index}.wav",
            "machine": "2026/noise/00",
            "domain": "source",
            "condition": "normal",
            "attributes": "",
        }


def main() -> None:
    """Embed, and print what it took."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    args = parse_arguments(ExtractionArguments)
    check_names("encoder", [args.encoder], ENCODERS)
    torch.manual_seed(0)
    model = AsdModel(AsdConfig(encoder_config=ENCODERS[args.encoder].config()))
    before = peak_memory_gib()
    clips = NoiseClips(args.clips, round(args.seconds * model.config.sampling_rate))
    start = time.perf_counter()
    extract_embeddings(model, clips, AsdFeatureExtractor(), batch_size=args.batch_size)
    elapsed = time.perf_counter() - start
    early = clips.peaks[min(len(clips.peaks) - 1, 4 * args.batch_size)]
    print(
        f"{args.encoder}, {model.num_parameters() / 1e6:.1f} M parameters; {args.clips} clips of "
        f"{args.seconds:g} s with near and far, batches of {args.batch_size}"
    )
    print(
        f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads"
    )
    print(f"{elapsed:.0f} s, {elapsed / args.clips:.3f} s per clip")
    print(
        f"peak memory {before:.2f} GiB before the first clip, {early:.2f} GiB after four batches, "
        f"{peak_memory_gib():.2f} GiB after all"
    )


if __name__ == "__main__":
    script(main)
