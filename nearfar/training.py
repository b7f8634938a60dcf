"""The training loop: batches in, a fine-tuned model out; interruptible and resumed exactly."""

import logging
import math
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler
from tqdm.auto import tqdm

from nearfar.checkpoints import Progress, latest_checkpoint, save_checkpoint
from nearfar.clip_streams import ClipStream
from nearfar.schedules import build_schedule
from nearfar.selection import Selection, validate
from nearfar.training_batches import augmented
from nearfar.training_clips import (
    BalancedSampler,
    Collator,
    DrawnClips,
    LabelledClips,
    StreamSampler,
)
from nearfar.training_options import TrainingOptions, check_training
from nearfar.weight_averaging import WeightAverage

logger = logging.getLogger(__name__)


class TrainingInterruptedError(KeyboardInterrupt):
    """Training was interrupted; its state is saved and it can go on from there."""


def train(
    model: nn.Module,
    clips: LabelledClips,
    feature_extractor: Any,  # noqa: ANN401 - an AsdFeatureExtractor, which nearfar must not import
    options: TrainingOptions,
    accelerator: Accelerator,
    *,
    state_dir: Path,
    front_end_strength: Mapping[str, float] | None = None,
    validation: LabelledClips | None = None,
    relabel: Callable[[NDArray[np.int64]], NDArray[np.int64]] | None = None,
    collator: Collator | None = None,
    validator: Callable[..., dict[str, float]] = validate,
    resume_from: Path | None = None,
) -> dict[str, float]:
    """Train a model in place and return its last logged values.

    The model ends with its last weights, with their moving average where `ema_decay` asks for one,
    or with the mean of the best ones where `keep_best` does, which are averages in turn.

    A run that was interrupted and resumed ends with the parameters of one that was not: batches,
    augmentation, optimiser, schedule, averages, pseudo labels and random states continue where they
    stood. Two processes end with the parameters of one, within rounding, as long as nothing looks
    across the batch: the loss is a mean over clips, and each process takes its share of the same
    batch. Batch normalisation uses its own process's share.

    Args:
        model: Called like `AsdForProxyClassification`; its `set_progress`, if it has one, is told
            the share of updates done before each batch.
        clips: Training clips and labels.
        feature_extractor: The model's `AsdFeatureExtractor`.
        options: Of the training.
        accelerator: With `split_batches` and a seedable sampler.
        state_dir: Where states are saved, `step_<update>` each.
        front_end_strength: The guard's decision per machine, in [0, 1]; a machine left out has 1.
        validation: Normal clips that do not train, to choose weights by; it shares its labels with
            `clips`, as `LabelledClips.take` does.
        relabel: Labels -> new ones of the same classes, by the model as it is; called every
            `pseudo_label_epochs` epochs.
        collator: Makes the batches; None: a `Collator` of extractor and guard.
        validator: Called like `validate`, to judge the model by `validation`.
        resume_from: A saved state.

    Raises:
        TrainingInterruptedError: Ctrl-C or a termination signal; the state is saved.
        FloatingPointError: The loss or its gradient is not finite; the last saved state is kept.
        ValueError: Options make no sense, or the saved state is of another training.
    """
    check_training(options)
    check_parts(options, validation, relabel)
    collate = collator or Collator(feature_extractor, front_end_strength)
    drawn = DrawnClips(clips, options)
    loader = training_loader(drawn, collate, options, accelerator)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=options.learning_rate,
        weight_decay=options.weight_decay,
    )
    updates_per_epoch = math.ceil(len(loader) / options.gradient_accumulation_steps)
    total = options.max_steps or options.num_train_epochs * updates_per_epoch
    schedule = build_schedule(
        optimizer, options, num_updates=total, updates_per_epoch=updates_per_epoch
    )
    plain_model: Any = model  # as AsdForProxyClassification, which nearfar must not import
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    progress = Progress(data_digest=clips.digest())
    average = WeightAverage(plain_model, decay=options.ema_decay)
    selection = Selection(
        metric=options.selection_metric,
        keep_best=options.keep_best,
        patience=options.early_stopping_patience,
    )
    accelerator.register_for_checkpointing(progress, schedule, clips, average, selection)
    if resume_from is not None:
        accelerator.load_state(str(resume_from))
        logger.info("Going on from %s, update %d of %d.", resume_from, progress.step, total)

    def judge() -> dict[str, float]:
        assert validation is not None  # `keeper` asks only then
        with average.applied():
            values = validator(
                plain_model,
                validation,
                collate,
                accelerator,
                batch_size=max(1, options.train_batch_size // accelerator.num_processes),
                num_workers=options.dataloader_num_workers,
            )
            selection.note(plain_model, progress.step, values)
        return values

    keeper = _Keeper(
        accelerator=accelerator,
        state_dir=state_dir,
        progress=progress,
        total=total,
        log_every=options.logging_steps,
        save_every=options.save_steps,
        judge_every=(options.eval_steps or updates_per_epoch) if validation else None,
        judge=judge,
    )
    model.train()
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
        while progress.step < total and not selection.is_exhausted:
            if relabel is not None and _is_relabelled(options, progress):
                with average.applied():
                    found = relabel(clips.labels)
                clips.labels[:] = broadcast_object_list([found])[0]  # to all, what the first found
            drawn.epoch = progress.epoch
            loader.set_epoch(progress.epoch)
            batches = (
                accelerator.skip_first_batches(loader, progress.batch) if progress.batch else loader
            )
            for batch in batches:
                if hasattr(plain_model, "set_progress"):  # for what grows with the training
                    plain_model.set_progress(progress.step / total)
                with accelerator.accumulate(model):
                    loss = model(**augmented(plain_model, batch, options, progress.epoch)).loss
                    keeper.record.add_loss(loss, progress)
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        norm = accelerator.clip_grad_norm_(
                            model.parameters(), options.max_grad_norm
                        )
                    optimizer.step()
                    optimizer.zero_grad()
                progress.batch += 1
                if not accelerator.sync_gradients:
                    continue
                if not accelerator.optimizer_step_was_skipped:  # float16 tries a smaller scale
                    keeper.record.add_gradient(norm, progress)
                learning_rate = float(schedule.get_last_lr()[0])
                schedule.step()
                average.update()
                progress.step += 1
                stop = _any_process(accelerator, stopped=bool(interrupted))
                keeper.after_update(learning_rate, stop=stop)
                bar.update()
                bar.set_postfix(keeper.shown)
                if stop:
                    raise TrainingInterruptedError(
                        f"Interrupted after update {progress.step} of {total}; everything is "
                        "saved. Go on with the same command and --resume_from_checkpoint latest"
                    )
                if progress.step == total or selection.is_exhausted:
                    break
            else:
                progress.epoch, progress.batch = progress.epoch + 1, 0
    if selection.is_exhausted:
        save_checkpoint(accelerator, state_dir, progress.step)
        logger.info("Stopped after update %d: no new best for a while.", progress.step)
    if selection.kept:
        logger.info("Taking the weights after updates %s.", sorted(selection.steps))
        selection.apply(plain_model)
    else:
        average.apply()
    return keeper.values


def check_parts(
    options: TrainingOptions,
    validation: LabelledClips | None,
    relabel: Callable[[NDArray[np.int64]], NDArray[np.int64]] | None,
) -> None:
    """Raise ValueError where options need what was not given."""
    if validation is None:
        needing = ("eval_steps", "keep_best", "early_stopping_patience")
        if given := [name for name in needing if getattr(options, name)]:
            raise ValueError(
                f"{given} came without validation clips. Keep some back with validation_share, or "
                "leave them out."
            )
    if (relabel is None) != (options.pseudo_label_epochs is None):
        raise ValueError(
            f"pseudo_label_epochs={options.pseudo_label_epochs}, but there are "
            f"{'no' if relabel is None else 'some'} pseudo labels to renew."
        )


def training_loader(
    drawn: DrawnClips, collate: Collator, options: TrainingOptions, accelerator: Accelerator
) -> Any:  # noqa: ANN401 - accelerate makes another class of it
    """Return batches of an epoch's draws in random order; what does not fill a batch is left out.

    Raises:
        ValueError: The processes cannot share a batch.
    """
    batch_size = min(options.train_batch_size, len(drawn))
    if batch_size % accelerator.num_processes:
        raise ValueError(
            f"A batch of {batch_size} clips cannot be shared by {accelerator.num_processes} "
            "processes. Make train_batch_size a multiple of their number."
        )
    sampler: Sampler[Any] | None = None
    if isinstance(drawn.clips.clips, ClipStream):
        sampler = StreamSampler(
            drawn.clips, seed=options.seed, buffer_size=options.shuffle_buffer_size
        )
    elif options.target_share is not None:
        sampler = BalancedSampler(
            drawn.clips.domain_groups(), target_share=options.target_share, seed=options.seed
        )
    return DataLoader(
        drawn,
        batch_size=batch_size,
        shuffle=sampler is None,
        sampler=sampler,
        drop_last=True,
        collate_fn=collate,
        num_workers=options.dataloader_num_workers,
        # Each pass draws a number; from torch's own generator, a resumed pass would shift dropout.
        generator=torch.Generator(),
    )


@dataclass
class LossRecord:
    """Losses and gradient norms since the last look at them, each with where it was had.

    To look costs the device a stop, so it is done now and then, and before weights are saved.
    """

    losses: list[tuple[Tensor, int, str]] = field(default_factory=list)  # of batches
    norms: list[tuple[Tensor, int, str]] = field(default_factory=list)  # of updates, unclipped

    def add_loss(self, loss: Tensor, progress: Progress) -> None:
        """Add a batch's loss."""
        place = f"(epoch {progress.epoch}, batch {progress.batch})"
        self.losses.append((loss.detach(), progress.step + 1, place))

    def add_gradient(self, norm: Tensor, progress: Progress) -> None:
        """Add the norm of an update's gradient."""
        self.norms.append((norm.detach(), progress.step + 1, f"(epoch {progress.epoch})"))

    def take(self, accelerator: Accelerator, state_dir: Path) -> dict[str, float]:
        """Return the mean loss and gradient norm, and begin anew.

        Raises:
            FloatingPointError: One of them is not finite; the message says which was so first.
        """
        means, wrong = {}, []
        records = (("loss", "loss", self.losses), ("gradient", "grad_norm", self.norms))
        for name, key, record in records:
            if not record:  # no gradient was used
                continue
            values = accelerator.reduce(torch.stack([v for v, _, _ in record]), "mean").tolist()
            means[key] = sum(values) / len(values)
            for value, (_, update, place) in zip(values, record, strict=True):
                if not math.isfinite(value):
                    wrong.append((update, f"The {name} became {value} in update {update} {place}."))
        if wrong:
            latest = latest_checkpoint(state_dir)
            saved = f"The last good state is {latest}; resume from it" if latest else "Train anew"
            first = min(wrong, key=lambda found: found[0])[1]  # of one update, the loss
            raise FloatingPointError(f"{first} {saved} with a lower learning_rate.")
        self.losses, self.norms = [], []
        return means


@dataclass
class _Keeper:
    """What follows an update: figures, validations, saved states.

    Attributes:
        judge_every: Updates between two validations; None: there are none.
        judge: Validates, and takes note of the weights.
        values: Last logged ones.
        shown: What the progress bar says.
    """

    accelerator: Accelerator
    state_dir: Path
    progress: Progress
    total: int
    log_every: int
    save_every: int
    judge_every: int | None
    judge: Callable[[], dict[str, float]]
    record: LossRecord = field(default_factory=LossRecord)
    values: dict[str, float] = field(default_factory=dict)
    shown: dict[str, str] = field(default_factory=dict)

    def after_update(self, learning_rate: float, *, stop: bool) -> None:
        """Log, validate and save what is due; validation comes first, so its verdict is saved."""
        step = self.progress.step
        last = step == self.total
        judge = self.judge_every is not None and (last or step % self.judge_every == 0)
        save = stop or last or step % self.save_every == 0
        if not (judge or save or step % self.log_every == 0):
            return
        values = self.record.take(self.accelerator, self.state_dir)  # finite, or it raises
        self.values = values | {"learning_rate": learning_rate, "epoch": self.progress.epoch}
        self.shown = {"loss": f"{values['loss']:.3f}"}
        if judge:
            self.values |= self.judge()
        self.accelerator.log(self.values, step=step)
        if save:
            save_checkpoint(self.accelerator, self.state_dir, step)


def _is_relabelled(options: TrainingOptions, progress: Progress) -> bool:
    """Return whether pseudo labels are due at this place, the beginning of an epoch."""
    every = options.pseudo_label_epochs
    first = progress.epoch == 0 or progress.batch > 0
    return every is not None and not first and progress.epoch % every == 0


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
