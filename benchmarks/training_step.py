"""Time and peak memory of a training step: `python -m benchmarks.training_step`.

One step is what fine-tuning does: forward through encoder and ArcFace head, backward, AdamW. The
weights are random, which changes neither figure. The first step includes what is set up once.
"""

import argparse
import os
import platform
import resource
import sys
import time
from dataclasses import dataclass, fields

import torch

from modeling import AsdConfig, AsdForProxyClassification

NUM_CLASSES = 80  # machine x attribute x domain of DCASE 2026
SIZES = {
    "base": {},
    "tiny": {
        "hidden_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 384,
        "patch_embedding_size": 64,
    },
}


@dataclass(frozen=True)
class StepTimes:
    """Seconds of one training step: by part, and how long the CPU was at work for this process.

    On a busy machine, `processor` (with one thread) says what an idle one would take.
    """

    forward: float
    backward: float
    optimizer: float
    processor: float

    @property
    def total(self) -> float:
        """The whole step."""
        return self.forward + self.backward + self.optimizer


def training_steps(
    model: AsdForProxyClassification, *, batch_size: int, num_samples: int, steps: int
) -> list[StepTimes]:
    """Train on noise, and return the time of every step."""
    device = model.device
    generator = torch.Generator().manual_seed(0)
    near = 0.1 * torch.randn(batch_size, num_samples, generator=generator)
    labels = torch.randint(model.config.num_labels, (batch_size,), generator=generator)
    near, labels = near.to(device), labels.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    model.train()

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    times = []
    for _ in range(steps):
        started, processor = now(), time.process_time()
        loss = model(near_values=near, labels=labels).loss
        forward_done = now()
        loss.backward()
        backward_done = now()
        optimizer.step()
        optimizer.zero_grad()
        times.append(
            StepTimes(
                forward=forward_done - started,
                backward=backward_done - forward_done,
                optimizer=now() - backward_done,
                processor=time.process_time() - processor,
            )
        )
    return times


def peak_memory_gib() -> float:
    """Return the most memory that this process has held so far, in GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2 ** (30 if sys.platform == "darwin" else 20)  # bytes there, KiB elsewhere


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch_size", type=int, default=16, help="clips")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a clip")
    parser.add_argument("--size", choices=sorted(SIZES), default="base", help="of the encoder")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--attention", choices=["sdpa", "eager"], default="sdpa")
    parser.add_argument(
        "--activation_checkpointing",
        action="store_true",
        help="recompute each layer in the backward pass instead of keeping it",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def main() -> None:
    """Measure, and print a table."""
    args = parse_args()
    torch.manual_seed(0)
    encoder_config = {"model_type": "nearfar_beats"} | SIZES[args.size]
    config = AsdConfig(encoder_config=encoder_config, num_labels=NUM_CLASSES)
    config._attn_implementation = args.attention
    model = AsdForProxyClassification(config).to(args.device)
    if args.activation_checkpointing:
        model.activation_checkpointing_enable()
    before = peak_memory_gib()
    times = training_steps(
        model,
        batch_size=args.batch_size,
        num_samples=round(args.seconds * config.sampling_rate),
        steps=args.steps,
    )
    parts = [field.name for field in fields(StepTimes)]
    print(
        f"BEATs {args.size}, {model.num_parameters() / 1e6:.1f} M parameters, "
        f"{args.batch_size} clips of {args.seconds:g} s, float32, {args.attention}"
        + (", activation checkpointing" if args.activation_checkpointing else "")
    )
    print(
        f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads, device {args.device}"
    )
    print("step  " + "".join(f"{name:>11}" for name in [*parts, "total"]) + "   seconds")
    for number, step in enumerate(times, start=1):
        values = [*(getattr(step, part) for part in parts), step.total]
        print(f"{number:<6}" + "".join(f"{value:11.2f}" for value in values))
    print(f"peak memory {peak_memory_gib():.2f} GiB, {before:.2f} GiB before the first step")
    if model.device.type == "cuda":
        print(f"peak on the device {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
