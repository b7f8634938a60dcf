"""Speed and peak memory of each recipe's training at its encoder's full size.

A process of its own for every recipe trains it for a few updates by train.py's parts and the real
loop: model, head, front end, augmentation, optimiser, moving average. Weights are random, and clips
are noise that lies in memory, which changes neither figure; an update is one batch, so what a
recipe accumulates is divided out. A baseline's clip is all its stacked frames, each heard once; its
spectrogram, which is made once for all epochs, is left out. What is measured is not measured again.

python -m benchmarks.training --output_dir runs/training
python -m benchmarks.training --output_dir runs/training --recipes unis_2 --mixed_precision bf16
"""

import contextlib
import dataclasses
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from accelerate.utils import DataLoaderConfiguration

import train
from assembly.models import with_lora
from benchmarks.memory import peak_memory_gib
from benchmarks.quickstart import ROOT
from modeling import AsdFeatureExtractor, AutoencoderConfig, ReconstructionNetwork
from nearfar.arguments import check_names, parse_arguments, script
from nearfar.autoencoder_training import StackedFrames, train_epoch
from nearfar.files import read_json, read_yaml, write_json
from nearfar.proxy_labels import ProxyLabels
from nearfar.training import train as train_model
from nearfar.training_clips import LabelledClips

logger = logging.getLogger(__name__)

NUM_MACHINES, NUM_ATTRIBUTES = 8, 5  # times two domains: 80 classes, as in 2026
NUM_SOUNDS = 8  # that the clips share


@dataclass(kw_only=True)
class TrainingArguments:
    """Arguments of benchmarks.training."""

    output_dir: Path = field(metadata={"help": "Holds one file per measurement."})
    recipes: list[str] | None = field(
        default=None, metadata={"help": "Names of recipes; None: all that are trained."}
    )
    batch_size: int | None = field(
        default=None, metadata={"help": "Of encoders; None takes the recipe's."}
    )
    seconds: float = field(default=10.0, metadata={"help": "Length of a clip."})
    updates: int = field(default=3, metadata={"help": "Timed; one before them is not."})
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"


class StoppedError(Exception):
    """Enough updates are timed."""


class Stopwatch(GeneralTracker):
    """Notes when each update ends, and stops the training after some.

    Args:
        updates: The last one that is noted.
    """

    name = "stopwatch"
    requires_logging_directory = False
    tracker = None

    def __init__(self, updates: int) -> None:
        super().__init__()
        self.updates = updates
        self.times: list[tuple[float, float]] = []  # of the clock, and of the processor

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Note nothing."""

    def log(self, values: dict[str, Any], step: int | None = None, **_: object) -> None:  # noqa: ARG002 - of a tracker
        """Note an update; the loss was looked at, so a GPU is done with it, too."""
        self.times.append((time.perf_counter(), time.process_time()))
        if len(self.times) == self.updates:
            raise StoppedError


def main() -> None:
    """Measure what is not there yet, then print the table."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    if len(sys.argv) > 1 and sys.argv[1] == "--measure":
        measure_to_file(*sys.argv[2:])
        return
    args = parse_arguments(TrainingArguments)
    recipes = trained_recipes()
    check_names("recipes", args.recipes or [], recipes)
    rows = []
    for name in args.recipes or recipes:
        values = recipes[name] | {"mixed_precision": args.mixed_precision}
        if args.batch_size is not None and values.get("kind") != "autoencoder":
            values["train_batch_size"] = args.batch_size
        path = args.output_dir / f"{name}.json"
        rows.append(
            {"recipe": name} | measured(path, values, seconds=args.seconds, updates=args.updates)
        )
    print(
        f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads; clips of {args.seconds:g} s, random weights"
    )
    print(format_rows(rows))


def trained_recipes() -> dict[str, dict[str, Any]]:
    """Return the values of all recipes that train an encoder or autoencoders, by name."""
    recipes = {}
    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        values = read_yaml(path, f"Recipe {path}")
        names = {field.name for field in dataclasses.fields(train.TrainArguments)}
        one = set(values) <= names and values.get("kind", "model") in ("model", "autoencoder")
        if one and not values.get("no_training"):
            recipes[path.stem] = values
    return recipes


def measured(
    path: Path, values: Mapping[str, Any], *, seconds: float, updates: int
) -> dict[str, Any]:
    """Return the figures in a file; a process of its own writes it, if it is not there.

    Args:
        path: The file.
        values: Of train.py's arguments.
        seconds: Length of a clip.
        updates: That are timed.

    Raises:
        ValueError: The file is there for other values.
    """
    setting = {"values": dict(values), "seconds": seconds, "updates": updates}
    if not path.is_file():
        logger.info("measuring %s", path.stem)
        path.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "benchmarks.training", "--measure"]
        subprocess.run([*command, json.dumps(setting), str(path.resolve())], check=True, cwd=ROOT)
    figures: dict[str, Any] = read_json(path)
    if figures["setting"] != setting:
        raise ValueError(
            f"{path} was measured with {figures['setting']}, but asked for is {setting}. Choose "
            "another output_dir, or remove it."
        )
    return figures


def measure_to_file(setting: str, path: str) -> None:
    """Measure in this process, whose memory is measured with it."""
    asked = json.loads(setting)
    write_json(Path(path), measure(**asked) | {"setting": asked})


def measure(values: dict[str, Any], seconds: float, updates: int) -> dict[str, Any]:
    """Train for one update and `updates` more; return the figures of these.

    Returns:
        `clips_per_second` by the clock and `processor_clips_per_second` by this process's time on
        the processor, which on a busy machine with one thread says what an idle one would do;
        `peak_gib`, on the GPU if there is one; parameters and `trainable` ones in millions.
    """
    if values.get("kind") == "autoencoder":
        return measure_autoencoder(values, seconds, updates)
    values = values | {"gradient_accumulation_steps": 1, "logging_steps": 1}
    if values.get("encoder_config") is None:
        values["encoder_config"] = {"model_type": values.get("encoder_type") or "nearfar_beats"}
    args = train.TrainArguments(**values, data_dir=Path(), output_dir=Path())
    watch = Stopwatch(1 + updates)
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        log_with=[watch],
        dataloader_config=DataLoaderConfiguration(split_batches=True, use_seedable_sampler=True),
    )
    accelerator.init_trackers("nearfar")
    train.seed_all(args)
    encoder = train.build_encoder(args)
    rate = encoder.config.sampling_rate
    rows = noise_rows(args.train_batch_size * (2 + updates))
    items = [row | {"channel": channel} for channel in args.train_channels for row in rows]
    labels = ProxyLabels.from_clips(items, parts=args.label_parts)
    model = train.build_model(args, encoder, labels)
    if model.domain_adversary is not None:
        model.domain_adversary.balance([1.0, 1.0])
    network: Any = model if args.lora_rank is None else with_lora(model, args)
    if args.activation_checkpointing:
        model.activation_checkpointing_enable()
    clips = LabelledClips(
        noise_clips(rows, round(seconds * rate)), labels.labels, rows, channels=args.train_channels
    )
    extractor = AsdFeatureExtractor(
        sampling_rate=rate,
        min_num_samples=encoder.num_samples_per_patch,
        peak_normalize=args.peak_normalize,
        clip_seconds=args.clip_seconds,
    )
    relabel = (lambda found: found) if args.pseudo_label_epochs else None
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(StoppedError):
        train_model(
            network,
            clips,
            extractor,
            args,
            accelerator,
            state_dir=Path(folder),
            relabel=relabel,
        )
    differences = np.diff(np.array(watch.times), axis=0)  # (updates, 2)
    clock, processor = (statistics.median(column) for column in differences.T.tolist())
    on_gpu = accelerator.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else peak_memory_gib()
    return {
        "encoder": model.config.encoder_config.model_type,
        "batch_size": args.train_batch_size,
        "num_classes": labels.num_classes,
        "seconds_per_update": clock,
        "clips_per_second": args.train_batch_size / clock,
        "processor_clips_per_second": args.train_batch_size / processor,
        "peak_gib": peak,
        "parameters": sum(p.numel() for p in network.parameters()),
        "trainable": sum(p.numel() for p in network.parameters() if p.requires_grad),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
    }


def measure_autoencoder(values: dict[str, Any], seconds: float, updates: int) -> dict[str, Any]:
    """Measure, as `measure`, the training of a baseline's network for one machine."""
    args = train.TrainArguments(**values, data_dir=Path(), output_dir=Path())
    options: Any = args.autoencoder_config or {}
    config = AutoencoderConfig(machines=["2026/fan/00"], channels=args.channels, **options)
    device = Accelerator(mixed_precision=args.mixed_precision).device
    train.seed_all(args)
    network = ReconstructionNetwork(config).to(device)
    count = args.train_batch_size * (1 + updates)
    data = StackedFrames(
        frames=torch.randn(count + config.num_stacked_frames - 1, config.num_mel_bins).to(device),
        starts=torch.arange(count, device=device),
        domain_ids=torch.zeros(count, dtype=torch.long, device=device),
        domains=["source"],
        num_stacked_frames=config.num_stacked_frames,
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=args.learning_rate, fused=True)
    times = []
    for rows in torch.arange(count).split(args.train_batch_size):
        times.append((time.perf_counter(), time.process_time()))
        train_epoch(network, data, [rows.to(device)], optimizer)  # it waits for the loss
    times.append((time.perf_counter(), time.process_time()))
    differences = np.diff(np.array(times), axis=0)[1:]
    clock, processor = (statistics.median(column) for column in differences.T.tolist())
    frames = 1 + round(seconds * config.sampling_rate) // config.hop_length
    clips = args.train_batch_size / (frames - config.num_stacked_frames + 1)
    on_gpu = device.type == "cuda"
    return {
        "encoder": "autoencoder",
        "batch_size": args.train_batch_size,
        "num_classes": 0,
        "seconds_per_update": clock,
        "clips_per_second": clips / clock,
        "processor_clips_per_second": clips / processor,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else peak_memory_gib(),
        "parameters": sum(p.numel() for p in network.parameters()),
        "trainable": sum(p.numel() for p in network.parameters()),
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
    }


def noise_rows(count: int) -> list[dict[str, Any]]:
    """Return rows that make 80 proxy classes, as many of each as can be."""
    classes = [
        (f"2026/machine{machine}/00", f"speed_{attribute}", domain)
        for machine in range(NUM_MACHINES)
        for attribute in range(NUM_ATTRIBUTES)
        for domain in ("source", "target")
    ]
    rows = []
    for i in range(max(count, len(classes))):
        machine, attributes, domain = classes[i % len(classes)]
        known = {"machine": machine, "machine_type": machine.split("/")[1], "condition": "normal"}
        rows.append(
            known | {"attributes": attributes, "domain": domain, "file_name": f"clip_{i:04d}.wav"}
        )
    return rows


def noise_clips(rows: Sequence[dict[str, Any]], num_samples: int) -> list[dict[str, Any]]:
    """Return the rows with near and far, (num_samples,) each; some share theirs."""
    rng = np.random.default_rng(0)
    sounds = (0.1 * rng.standard_normal((NUM_SOUNDS, 2, num_samples))).astype(np.float32)
    return [
        row | dict(zip(("near", "far"), sounds[i % NUM_SOUNDS], strict=True))
        for i, row in enumerate(rows)
    ]


def format_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table."""
    lines = [
        f"{'recipe':<20}{'encoder':<16}{'trains':>9}{'classes':>9}{'batch':>7}{'s/update':>10}"
        f"{'clips/s':>9}{'per core-s':>12}{'peak GiB':>10}  device"
    ]
    lines += [
        f"{row['recipe']:<20}{row['encoder']:<16}{row['trainable'] / 1e6:>7.1f} M"
        f"{row['num_classes']:>9}{row['batch_size']:>7}{row['seconds_per_update']:>10.2f}"
        f"{row['clips_per_second']:>9.2f}{row['processor_clips_per_second']:>12.2f}"
        f"{row['peak_gib']:>10.2f}  {row['device']}"
        for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    script(main)
