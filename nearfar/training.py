"""The training loop: batches in, a fine-tuned model out; interruptible and resumed exactly."""

import hashlib
import json
import logging
import math
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, on_main_process
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers import get_scheduler

from nearfar.augmentation import clip_uniform, crop, mix_far
from nearfar.embeddings import model_inputs

logger = logging.getLogger(__name__)

CHECKPOINT_PREFIX = "step_"


class TrainingInterruptedError(KeyboardInterrupt):
    """Training was interrupted; its state is saved and it can go on from there."""


@dataclass(kw_only=True)
class TrainingOptions:
    """How a model is trained."""

    num_train_epochs: int = field(default=10, metadata={"help": "Passes over the training clips."})
    max_steps: int | None = field(
        default=None, metadata={"help": "Optimiser updates; overrides num_train_epochs."}
    )
    train_batch_size: int = field(
        default=16,
        metadata={
            "help": "Clips per batch, all processes together; autoencoders: stacks of frames."
        },
    )
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Batches per update."})
    learning_rate: float = field(
        default=1e-4, metadata={"help": "Peak rate of AdamW; autoencoders: of Adam."}
    )
    weight_decay: float = field(default=0.01, metadata={"help": "Of AdamW."})
    lr_scheduler_type: str = field(
        default="cosine", metadata={"help": "A schedule of transformers, e.g. linear or cosine."}
    )
    warmup_steps: int = field(default=0, metadata={"help": "Updates with a rising rate."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradients are clipped to it."})
    far_mixing: float = field(
        default=0.0,
        metadata={"help": "Training hears near + a * far with a from U(0, this); 0 is off."},
    )
    crop_seconds: float | None = field(
        default=None,
        metadata={"help": "Training hears a random piece of each clip; None hears all of it."},
    )
    save_steps: int = field(
        default=200, metadata={"help": "Updates between two saved states; the last one is kept."}
    )
    logging_steps: int = field(default=10, metadata={"help": "Updates between two log lines."})
    dataloader_num_workers: int = field(
        default=0, metadata={"help": "Processes that decode clips ahead of training."}
    )
    seed: int = field(default=0, metadata={"help": "Of everything drawn at random."})


@dataclass
class Progress:
    """Where training stands; saved and restored with the optimiser.

    Attributes:
        epoch: Passes begun, counted from 0.
        batch: Batches of this epoch already used.
        step: Optimiser updates done.
        data_digest: Of the clips and their labels, to notice another data set on resume.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    data_digest: str = ""

    def state_dict(self) -> dict[str, Any]:
        """Return all fields."""
        return dict(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore all fields.

        Raises:
            ValueError: The state belongs to other training clips.
        """
        if state["data_digest"] != self.data_digest:
            raise ValueError(
                "The training clips or their classes differ from those that the saved state was "
                "trained on. Give the same data_dir, seed and labels, or train anew without "
                "--resume_from_checkpoint."
            )
        vars(self).update(state)


class JsonLinesTracker(GeneralTracker):  # type: ignore[misc] # accelerate has no type information
    """Logs to `log.jsonl`, one JSON object per line; needs nothing installed."""

    name = "jsonl"
    requires_logging_directory = True

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / "log.jsonl"

    @property
    def tracker(self) -> Path:
        """The file."""
        return self.path

    @on_main_process  # type: ignore[untyped-decorator] # as above
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Begin the file, or go on with it, with the run's configuration."""
        self._write({"config": values})

    @on_main_process  # type: ignore[untyped-decorator] # as above
    def log(self, values: dict[str, Any], step: int | None = None, **_: object) -> None:
        """Append values of an optimiser update."""
        self._write({"step": step, **values})

    def _write(self, values: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values, default=str) + "\n")


class LabelledClips(Dataset[dict[str, Any]]):
    """Decoded training clips, each with its index and its proxy class."""

    def __init__(self, clips: Sequence[dict[str, Any]], labels: NDArray[Any]) -> None:
        self.clips = clips
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.clips[index] | {"index": index, "label": int(self.labels[index])}

    def digest(self, rows: Sequence[Mapping[str, Any]]) -> str:
        """Return a digest of which clips there are, from their undecoded rows, and their labels."""
        text = json.dumps(
            [(r["machine"], r["file_name"], int(y)) for r, y in zip(rows, self.labels, strict=True)]
        )
        return hashlib.sha256(text.encode()).hexdigest()


def train(
    model: nn.Module,
    clips: LabelledClips,
    feature_extractor: Any,  # noqa: ANN401 - an AsdFeatureExtractor, which nearfar must not import
    options: TrainingOptions,
    accelerator: Accelerator,
    *,
    state_dir: Path,
    data_digest: str = "",
    resume_from: Path | None = None,
) -> dict[str, float]:
    """Train a model in place and return its last logged values.

    A run that was interrupted and resumed ends with the parameters of one that was not: batches,
    augmentation, optimiser, schedule and random states continue where they stood. Two processes end
    with the parameters of one, within rounding, as long as nothing looks across the batch: the loss
    is a mean over clips, and each process takes its share of the same batch. Batch normalisation
    uses its own process's share.

    Args:
        model: Called like `AsdForProxyClassification`.
        clips: Training clips and labels.
        feature_extractor: The model's `AsdFeatureExtractor`.
        options: Of the training.
        accelerator: With `split_batches` and a seedable sampler.
        state_dir: Where states are saved, `step_<update>` each.
        data_digest: Of the clips, kept with the state and compared on resume.
        resume_from: A saved state.

    Raises:
        TrainingInterruptedError: Ctrl-C or a termination signal; the state is saved.
        FloatingPointError: The loss is not finite; the last saved state is kept.
    """
    batch_size = min(options.train_batch_size, len(clips))
    if batch_size % accelerator.num_processes:
        raise ValueError(
            f"A batch of {batch_size} clips cannot be shared by {accelerator.num_processes} "
            "processes. Make train_batch_size a multiple of their number."
        )

    def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        batch = model_inputs(rows, feature_extractor)
        batch["labels"] = torch.tensor([row["label"] for row in rows])
        batch["index"] = torch.tensor([row["index"] for row in rows])
        return batch

    loader = DataLoader(
        clips,
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        collate_fn=collate,
        num_workers=options.dataloader_num_workers,
        # Each pass draws a number; from torch's own generator, a resumed pass would shift dropout.
        generator=torch.Generator(),
    )
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=options.learning_rate,
        weight_decay=options.weight_decay,
    )
    updates_per_epoch = math.ceil(len(loader) / options.gradient_accumulation_steps)
    total = options.max_steps or options.num_train_epochs * updates_per_epoch
    schedule = get_scheduler(
        options.lr_scheduler_type,
        optimizer,
        num_warmup_steps=options.warmup_steps,
        num_training_steps=total,
    )
    plain_model = model
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    progress = Progress(data_digest=data_digest)
    accelerator.register_for_checkpointing(progress, schedule)
    if resume_from is not None:
        accelerator.load_state(str(resume_from))
        logger.info("Going on from %s, update %d of %d.", resume_from, progress.step, total)

    model.train()
    values: dict[str, float] = {}
    running: list[Tensor] = []
    with (
        termination_flag() as interrupted,
        tqdm(
            total=total,
            initial=progress.step,
            desc="training",
            unit="update",
            disable=not accelerator.is_main_process,
        ) as bar,
    ):
        while progress.step < total:
            loader.set_epoch(progress.epoch)
            batches = (
                accelerator.skip_first_batches(loader, progress.batch) if progress.batch else loader
            )
            for batch in batches:
                with accelerator.accumulate(model):
                    loss = model(**augmented(plain_model, batch, options, progress.epoch)).loss
                    running.append(loss.detach())
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), options.max_grad_norm)
                    optimizer.step()
                    optimizer.zero_grad()
                progress.batch += 1
                if not accelerator.sync_gradients:
                    continue
                schedule.step()
                progress.step += 1
                bar.update()
                stop = _any_process(accelerator, stopped=bool(interrupted))
                save = stop or progress.step % options.save_steps == 0 or progress.step == total
                if save or progress.step % options.logging_steps == 0:
                    mean = accelerator.reduce(torch.stack(running).mean(), "mean").item()
                    running.clear()
                    if not math.isfinite(mean):
                        raise FloatingPointError(
                            f"The loss became {mean} before update {progress.step}. The last good "
                            f"state is {latest_checkpoint(state_dir)}; resume from it with a lower "
                            "learning_rate."
                        )
                    rate = schedule.get_last_lr()[0]
                    values = {"loss": mean, "learning_rate": rate, "epoch": progress.epoch}
                    bar.set_postfix(loss=f"{mean:.3f}")
                    accelerator.log(values, step=progress.step)
                if save:  # the loss is known to be finite
                    save_checkpoint(accelerator, state_dir, progress.step)
                if stop:
                    raise TrainingInterruptedError(
                        f"Interrupted after update {progress.step} of {total}; everything is "
                        "saved. Go on with the same command and --resume_from_checkpoint latest"
                    )
                if progress.step >= total:
                    break
            else:
                progress.epoch, progress.batch = progress.epoch + 1, 0
    return values


def save_checkpoint(accelerator: Accelerator, state_dir: Path, step: int) -> None:
    """Save the training state as `step_<step>` in place of the one before, whole or not at all."""
    folder = state_dir / f"{CHECKPOINT_PREFIX}{step:06d}"
    partial = state_dir / f".{folder.name}.partial"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        state_dir.mkdir(parents=True, exist_ok=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        for older in state_dir.glob(f"{CHECKPOINT_PREFIX}*"):
            if older != folder:
                shutil.rmtree(older)
    accelerator.wait_for_everyone()


def latest_checkpoint(state_dir: Path) -> Path | None:
    """Return the newest saved state, or None."""
    return max(state_dir.glob(f"{CHECKPOINT_PREFIX}*"), default=None)


def augmented(
    model: nn.Module, batch: dict[str, Tensor], options: TrainingOptions, epoch: int
) -> dict[str, Tensor]:
    """Return a batch as training hears it: far mixed into near, then a piece of each clip.

    The front end runs on the whole clip, before the crop. What is drawn depends on seed, epoch and
    clip alone.

    Args:
        model: An `AsdForProxyClassification`.
        batch: Its inputs, and `index` (batch,) of the clips.
        options: Its `far_mixing`, `crop_seconds` and `seed` are read.
        epoch: Counted from 0.
    """
    batch = dict(batch)
    index = batch.pop("index")
    draw = partial(clip_uniform, index, seed=options.seed, epoch=epoch)
    if options.far_mixing:
        gain = draw(low=0.0, high=options.far_mixing)
        batch["near_values"] = mix_far(batch["near_values"], batch["far_values"], gain)
    if options.crop_seconds is None:
        return batch
    config: Any = model.config
    asd: Any = model.asd
    lengths = batch["attention_mask"].sum(dim=1)
    num_samples = min(int(options.crop_seconds * config.sampling_rate), int(lengths.max()))
    if config.front_end != "near":
        if "far" in config.channels:
            raise ValueError(
                f"crop_seconds cannot follow front_end={config.front_end!r} where the far channel "
                "is encoded, too. Train on whole clips: --crop_seconds none."
            )
        with torch.no_grad():
            heard = asd.waveforms(
                batch["near_values"], batch["far_values"], batch["attention_mask"], None
            )
        batch["near_values"] = heard["near"]
        batch["far_values"] = torch.zeros_like(heard["near"])  # the front end is done
    latest = (lengths - num_samples).clamp_min(0)
    start = (draw(low=0.0, high=1.0, stream=1).to(latest.device) * (latest + 1)).long()
    start = start.minimum(latest)
    for name in ("near_values", "far_values", "attention_mask"):
        batch[name] = crop(batch[name], start, num_samples)
    return batch


def _any_process(accelerator: Accelerator, *, stopped: bool) -> bool:
    if accelerator.num_processes == 1:
        return stopped
    flag = torch.tensor(float(stopped), device=accelerator.device)
    return bool(accelerator.reduce(flag, "sum").item() > 0)


@contextmanager
def termination_flag() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of stopping at once."""
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
