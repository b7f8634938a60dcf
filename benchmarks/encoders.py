"""Speed of the encoders: `python -m benchmarks.encoders --output_dir runs/encoders`.

For each encoder, with random weights of full size, and each batch size: seconds per clip, ours and
as the authors' code computes (`plain_encoders.py`), measured in turn on the same clips; the largest
difference of their outputs; and the share of this machine's float32 matrix-product ceiling, which
is measured in the same run. An encoder and batch size that is done is not done again.
"""

import logging
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from benchmarks.plain_encoders import plain_beats, plain_eat, plain_fisher
from modeling import BeatsConfig, BeatsModel, EatConfig, EatModel, FisherConfig, FisherModel
from nearfar.arguments import parse_arguments, script
from nearfar.files import read_json, write_json

logger = logging.getLogger(__name__)


class Encoder(NamedTuple):
    """How an encoder is made, and what it is timed against."""

    build: Callable[[], PreTrainedModel]
    plain: Callable[[Any, Tensor], Tensor]


FISHER_TINY = {"hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 3}
ENCODERS = {
    "beats_base": Encoder(lambda: BeatsModel(BeatsConfig()), plain_beats),
    "eat_base": Encoder(lambda: EatModel(EatConfig()), plain_eat),
    "fisher_small": Encoder(lambda: FisherModel(FisherConfig()), plain_fisher),
    "fisher_tiny": Encoder(lambda: FisherModel(FisherConfig(**FISHER_TINY)), plain_fisher),
}


@dataclass(kw_only=True)
class EncodersArguments:
    """Arguments of benchmarks.encoders."""

    output_dir: Path = field(metadata={"help": "Holds one result per encoder and batch size."})
    encoders: list[str] = field(
        default_factory=lambda: list(ENCODERS), metadata={"help": f"Of {', '.join(ENCODERS)}."}
    )
    batch_sizes: list[int] = field(default_factory=lambda: [1, 8, 32])
    seconds: float = field(default=10.0, metadata={"help": "Length of a clip."})
    repetitions: int = field(default=3, metadata={"help": "Timed runs of each; medians count."})


def main() -> None:
    """Measure what is not there yet, then print the table."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    args = parse_arguments(EncodersArguments)
    if unknown := sorted(set(args.encoders) - ENCODERS.keys()):
        raise ValueError(f"--encoders {unknown} are unknown; there are {sorted(ENCODERS)}.")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in args.encoders:
        model = None
        for batch_size in args.batch_sizes:
            path = args.output_dir / f"{name}_{batch_size}_{args.seconds:g}s.json"
            if not path.is_file():
                torch.manual_seed(0)
                model = model or ENCODERS[name].build().eval()
                logger.info("%s, batches of %d", name, batch_size)
                result = measure(
                    model,
                    ENCODERS[name].plain,
                    batch_size=batch_size,
                    num_samples=round(args.seconds * model.config.sampling_rate),
                    repetitions=args.repetitions,
                )
                write_json(path, {"encoder": name, "batch_size": batch_size} | result)
            rows.append(read_json(path))
    print(
        f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads, float32, clips of {args.seconds:g} s"
    )
    print(format_rows(rows))


@torch.inference_mode()
def measure(
    model: PreTrainedModel,
    plain: Callable[[Any, Tensor], Tensor],
    *,
    batch_size: int,
    num_samples: int,
    repetitions: int,
) -> dict[str, float]:
    """Time an encoder and its plain version in turn; both have run once before.

    Returns:
        `seconds` and `plain_seconds` per clip (medians), `difference` (largest, absolute), `gflop`
        per clip and `ceiling`, the GFLOP/s of a matrix product (the best of all repetitions).
    """
    generator = torch.Generator().manual_seed(0)
    waveforms = 0.1 * torch.randn(batch_size, num_samples, generator=generator)

    def ours() -> Tensor:
        hidden: Tensor = model(waveforms).last_hidden_state
        return hidden

    difference = (ours() - plain(model, waveforms)).abs().amax().item()
    times, plain_times, ceilings = [], [], []
    for _ in range(repetitions):
        times.append(seconds(ours))
        plain_times.append(seconds(lambda: plain(model, waveforms)))
        ceilings.append(matrix_product_gflops())
    return {
        "seconds": statistics.median(times) / batch_size,
        "plain_seconds": statistics.median(plain_times) / batch_size,
        "difference": difference,
        "gflop": gflop_per_clip(model, waveforms[:1]),
        "ceiling": max(ceilings),
    }


def seconds(function: Callable[[], object]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def matrix_product_gflops(rows: int = 4096, size: int = 3072, columns: int = 768) -> float:
    """Return the rate of a float32 product as large as a feed-forward layer's, in GFLOP/s."""
    left, right = torch.randn(rows, size), torch.randn(size, columns)
    return 2e-9 * rows * size * columns / min(seconds(lambda: left @ right) for _ in range(5))


def gflop_per_clip(model: PreTrainedModel, waveform: Tensor) -> float:
    """Return the operations of all products and convolutions, a multiply and an add being two."""
    attention = model.config._attn_implementation
    model.set_attn_implementation("eager")  # plain products, all of which are counted
    try:
        with FlopCounterMode(display=False) as counter:
            model(waveform)
    finally:
        model.set_attn_implementation(attention)
    return 1e-9 * float(counter.get_total_flops())


def format_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table."""
    lines = [
        f"{'encoder':<14}{'batch':>6}{'s/clip':>9}{'plain':>9}{'ratio':>7}{'GFLOP':>8}"
        f"{'GFLOP/s':>9}{'ceiling':>9}{'share':>7}{'difference':>12}"
    ]
    for row in rows:
        rate = row["gflop"] / row["seconds"]
        lines.append(
            f"{row['encoder']:<14}{row['batch_size']:>6}{row['seconds']:>9.3f}"
            f"{row['plain_seconds']:>9.3f}{row['plain_seconds'] / row['seconds']:>7.2f}"
            f"{row['gflop']:>8.1f}{rate:>9.0f}{row['ceiling']:>9.0f}"
            f"{rate / row['ceiling']:>7.0%}{row['difference']:>12.1e}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    script(main)
