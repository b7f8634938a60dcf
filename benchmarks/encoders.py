"""Speed of the encoders: `python -m benchmarks.encoders --output_dir runs/encoders`.

With random weights of full size, in three parts:

- speed: for each encoder and batch size, seconds per clip, ours and as the authors' code computes
  (`plain_encoders.py`), measured in turn on the same clips; the largest difference of their
  outputs; and the share of this machine's float32 matrix-product ceiling, measured in the same run;
- precision: float32, compiled, bfloat16 and int8 (`precisions.py`);
- training: time and peak memory of a step, trained in full, in part and by LoRA
  (`training.py`, a process each).

What is measured is not measured again.
"""

import logging
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from benchmarks.encoder_sizes import ENCODERS, config_values
from benchmarks.precisions import format_precisions, measure_precisions
from benchmarks.training import measured
from nearfar.arguments import check_names, parse_arguments, script
from nearfar.files import read_json, write_json

logger = logging.getLogger(__name__)

PARTS = ("speed", "precision", "training")
USUAL = ("beats_base", "eat_base", "fisher_small", "fisher_tiny")
TRAINED: dict[str, dict[str, Any]] = {  # values of train.py
    "all": {},
    "last 2 layers": {"trainable_layers": 2},
    "LoRA, rank 64": {"lora_rank": 64},
}


@dataclass(kw_only=True)
class EncodersArguments:
    """Arguments of benchmarks.encoders."""

    output_dir: Path = field(metadata={"help": "Holds one file per measurement."})
    parts: list[str] = field(default_factory=lambda: list(PARTS))
    encoders: list[str] = field(
        default_factory=lambda: list(USUAL), metadata={"help": f"Of {', '.join(ENCODERS)}."}
    )
    batch_sizes: list[int] = field(default_factory=lambda: [1, 8, 32])
    precision_batch_size: int = 2
    training_batch_size: int = 2
    seconds: float = field(default=10.0, metadata={"help": "Length of a clip."})
    repetitions: int = field(default=5, metadata={"help": "Timed runs of each; medians count."})


def main() -> None:
    """Measure what is not there yet, then print the tables."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    args = parse_arguments(EncodersArguments)
    check_names("parts", args.parts, PARTS)
    check_names("encoders", args.encoders, ENCODERS)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    print(
        f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads, clips of {args.seconds:g} s, random weights"
    )
    if "speed" in args.parts:
        print("\nfloat32, ours and computed as the authors do")
        print(format_rows(speed_rows(args)))
    if "precision" in args.parts:
        print(f"\nother precisions, batches of {args.precision_batch_size}")
        print(format_precisions(precision_rows(args)))
    if "training" in args.parts:
        print(f"\na training step of {args.training_batch_size} clips, float32")
        print(format_training(training_rows(args)))


def speed_rows(args: EncodersArguments) -> list[dict[str, Any]]:
    """Return a row per encoder and batch size."""
    rows = []
    for name in args.encoders:
        for batch_size in args.batch_sizes:
            path = args.output_dir / f"{name}_{batch_size}_{args.seconds:g}s.json"
            if not path.is_file():
                logger.info("%s, batches of %d", name, batch_size)
                model = new_encoder(name)
                result = measure(
                    model,
                    ENCODERS[name].plain,
                    batch_size=batch_size,
                    num_samples=round(args.seconds * model.config.sampling_rate),
                    repetitions=args.repetitions,
                )
                write_json(path, {"encoder": name, "batch_size": batch_size} | result)
            rows.append(read_json(path))
    return rows


def precision_rows(args: EncodersArguments) -> list[dict[str, Any]]:
    """Return a row per encoder and precision."""
    rows = []
    for name in args.encoders:
        path = (
            args.output_dir / f"{name}_precision_{args.precision_batch_size}_{args.seconds:g}s.json"
        )
        if not path.is_file():
            logger.info("%s, other precisions", name)
            encoder = new_encoder(name)
            num_samples = round(args.seconds * encoder.config.sampling_rate)
            waveforms = noise(args.precision_batch_size, num_samples)

            def time_in_turn(
                prepared: Mapping[str, nn.Module], waveforms: Tensor = waveforms
            ) -> dict[str, float]:
                return seconds_per_clip(prepared, waveforms, repetitions=args.repetitions)

            measured = measure_precisions(encoder, time_in_turn=time_in_turn)
            write_json(path, {"rows": [{"encoder": name} | row for row in measured]})
        rows += read_json(path)["rows"]
    return rows


@torch.inference_mode()
def seconds_per_clip(
    encoders: Mapping[str, nn.Module], waveforms: Tensor, *, repetitions: int
) -> dict[str, float]:
    """Return the median time of each encoder, timed in turn after a first pass that does not count.

    Args:
        encoders: By name.
        waveforms: (batch, num_samples).
        repetitions: Timed runs of each.
    """
    for encoder in encoders.values():
        encoder(waveforms)
    times: dict[str, list[float]] = {name: [] for name in encoders}
    for _ in range(repetitions):
        for name, encoder in encoders.items():
            times[name].append(seconds(partial(encoder, waveforms)))
    return {name: statistics.median(runs) / len(waveforms) for name, runs in times.items()}


def training_rows(args: EncodersArguments) -> list[dict[str, Any]]:
    """Return a row per encoder, what of it is trained, and activation checkpointing or not."""
    rows = []
    for name in args.encoders:
        encoder = {"encoder_config": config_values(ENCODERS[name].config())}
        for trained, values in TRAINED.items():
            for checkpointing in (False, True):
                words = [name, *trained.replace(",", "").split(), checkpointing]
                words += [args.training_batch_size, f"{args.seconds:g}s.json"]
                given = encoder | values | {"train_batch_size": args.training_batch_size}
                figures = measured(
                    args.output_dir / "_".join(map(str, words)),
                    given | {"activation_checkpointing": checkpointing},
                    seconds=args.seconds,
                    updates=1,
                )
                rows.append(
                    {"encoder": name, "trained": trained, "checkpointing": checkpointing} | figures
                )
    return rows


def new_encoder(name: str) -> PreTrainedModel:
    """Return an encoder with random weights, always the same."""
    torch.manual_seed(0)
    return ENCODERS[name].build()


def noise(batch_size: int, num_samples: int) -> Tensor:
    """Return clips (batch_size, num_samples), always the same."""
    generator = torch.Generator().manual_seed(0)
    return 0.1 * torch.randn(batch_size, num_samples, generator=generator)


@torch.inference_mode()
def measure(
    model: PreTrainedModel,
    plain: Callable[[Any, Tensor], Tensor],
    *,
    batch_size: int,
    num_samples: int,
    repetitions: int,
) -> dict[str, float]:
    """Time an encoder, a matrix product and the plain version in turn; all have run once before.

    A shared machine is faster at one moment than at another, so that what was measured one after
    the other is compared, turn by turn.

    Returns:
        Medians over the turns: `seconds` and `plain_seconds` per clip, `ratio` of the two,
        `ceiling`, the GFLOP/s of the matrix product, and `share`, what the encoder reaches of it.
        Besides, `difference` of the outputs (largest, absolute) and `gflop` per clip.
    """
    waveforms = noise(batch_size, num_samples)

    def ours() -> Tensor:
        hidden: Tensor = model(waveforms).last_hidden_state
        return hidden

    difference = (ours() - plain(model, waveforms)).abs().amax().item()
    gflop = gflop_per_clip(model, waveforms[:1])
    turns = []
    for _ in range(repetitions):
        before = matrix_product_gflops()
        own = seconds(ours) / batch_size
        ceiling = 0.5 * (before + matrix_product_gflops())
        theirs = seconds(lambda: plain(model, waveforms)) / batch_size
        turns.append((own, theirs, theirs / own, ceiling, gflop / own / ceiling))
    names = ("seconds", "plain_seconds", "ratio", "ceiling", "share")
    medians = map(statistics.median, zip(*turns, strict=True))
    return dict(zip(names, medians, strict=True)) | {"difference": difference, "gflop": gflop}


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
    lines += [
        f"{row['encoder']:<14}{row['batch_size']:>6}{row['seconds']:>9.3f}"
        f"{row['plain_seconds']:>9.3f}{row['ratio']:>7.2f}{row['gflop']:>8.1f}"
        f"{row['gflop'] / row['seconds']:>9.0f}{row['ceiling']:>9.0f}{row['share']:>7.0%}"
        f"{row['difference']:>12.1e}"
        for row in rows
    ]
    return "\n".join(lines)


def format_training(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of training steps."""
    lines = [
        f"{'encoder':<14}{'trained':<16}{'parameters':>11}{'checkpointing':>15}{'s/step':>8}"
        f"{'peak GiB':>10}"
    ]
    lines += [
        f"{row['encoder']:<14}{row['trained']:<16}{row['trainable'] / 1e6:>9.2f} M"
        f"{'yes' if row['checkpointing'] else 'no':>15}{row['seconds_per_update']:>8.2f}"
        f"{row['peak_gib']:>10.2f}"
        for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    script(main)
