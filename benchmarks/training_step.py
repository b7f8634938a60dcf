"""Time and peak memory of a training step: `python -m benchmarks.training_step`.

One step is what fine-tuning does: forward through encoder and ArcFace head, backward, AdamW. The
weights are random, which changes neither figure. The first step includes what is set up once.
"""

import dataclasses
import logging
import os
import platform
import resource
import sys
import time
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from benchmarks.encoder_sizes import ENCODERS
from modeling import (
    LORA_MODULES_TO_SAVE,
    LORA_TARGET_MODULES,
    AsdConfig,
    AsdForProxyClassification,
)
from nearfar.arguments import check_names, parse_arguments, script
from nearfar.files import write_json

NUM_CLASSES = 80  # machine x attribute x domain of DCASE 2026


@dataclass(kw_only=True)
class TrainingStepArguments:
    """Arguments of benchmarks.training_step."""

    encoder: str = field(default="beats_base", metadata={"help": f"Of {', '.join(ENCODERS)}."})
    batch_size: int = field(default=16, metadata={"help": "Clips."})
    seconds: float = field(default=10.0, metadata={"help": "Length of a clip."})
    steps: int = 2
    trainable_layers: int | None = field(
        default=None, metadata={"help": "Train the last layers only; None trains all."}
    )
    lora_rank: int | None = field(
        default=None, metadata={"help": "Adapt every linear map of the layers by so much."}
    )
    activation_checkpointing: bool = field(
        default=False, metadata={"help": "Recompute each layer in the backward pass."}
    )
    attention: str = field(default="sdpa", metadata={"help": "sdpa or eager."})
    device: str = field(default="cuda" if torch.cuda.is_available() else "cpu")
    json: Path | None = field(default=None, metadata={"help": "Write the figures here, too."})


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


def build_model(args: TrainingStepArguments) -> nn.Module:
    """Return a detector with the parameters frozen, adapted and checkpointed as asked for."""
    torch.manual_seed(0)
    encoder_config = ENCODERS[args.encoder].config()
    config = AsdConfig(encoder_config=encoder_config, num_labels=NUM_CLASSES)
    config._attn_implementation = args.attention
    model = AsdForProxyClassification(config).to(args.device)
    model.asd.freeze_layers(args.trainable_layers)
    if args.activation_checkpointing:
        model.activation_checkpointing_enable()
    if args.lora_rank is None:
        return model
    adapters = LoraConfig(
        r=args.lora_rank,
        target_modules=list(LORA_TARGET_MODULES[encoder_config.model_type]),
        modules_to_save=list(LORA_MODULES_TO_SAVE),
    )
    return get_peft_model(model, adapters)


def training_steps(
    model: nn.Module, *, batch_size: int, num_samples: int, steps: int
) -> list[StepTimes]:
    """Train on noise, and return the time of every step."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    near = 0.1 * torch.randn(batch_size, num_samples, generator=generator)
    labels = torch.randint(NUM_CLASSES, (batch_size,), generator=generator)
    near, labels = near.to(device), labels.to(device)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-4)
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


def main() -> None:
    """Measure, and print a table."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    args = parse_arguments(TrainingStepArguments)
    check_names("encoder", [args.encoder], ENCODERS)
    model = build_model(args)
    before = peak_memory_gib()
    times = training_steps(
        model,
        batch_size=args.batch_size,
        num_samples=round(args.seconds * ENCODERS[args.encoder].config().sampling_rate),
        steps=args.steps,
    )
    after = peak_memory_gib()
    count = sum(parameter.numel() for parameter in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(
        f"{args.encoder}, {count / 1e6:.1f} M parameters, {trainable / 1e6:.1f} M of them train, "
        f"{args.batch_size} clips of {args.seconds:g} s, float32, {args.attention}"
        + (", activation checkpointing" if args.activation_checkpointing else "")
    )
    print(
        f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads, device {args.device}"
    )
    parts = [part.name for part in fields(StepTimes)]
    print("step  " + "".join(f"{name:>11}" for name in [*parts, "total"]) + "   seconds")
    for number, step in enumerate(times, start=1):
        values = [*(getattr(step, part) for part in parts), step.total]
        print(f"{number:<6}" + "".join(f"{value:11.2f}" for value in values))
    print(f"peak memory {after:.2f} GiB, {before:.2f} GiB before the first step")
    on_device = None
    if torch.device(args.device).type == "cuda":
        on_device = torch.cuda.max_memory_allocated() / 2**30
        print(f"peak on the device {on_device:.2f} GiB")
    if args.json is not None:
        figures = {
            "seconds": min(step.total for step in times),
            "steps": [dataclasses.asdict(step) for step in times],
            "peak_gib": after if on_device is None else on_device,
            "trainable": trainable,
        }
        write_json(args.json, figures)


if __name__ == "__main__":
    script(main)
