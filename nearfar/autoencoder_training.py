"""Training of the baselines' autoencoders, machine by machine; interruptible, resumed exactly."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm.auto import tqdm

from nearfar.autoencoder_states import (
    STATE_PREFIX,
    UnfinishedState,
    finished_path,
    read_state,
    training_digest,
    unfinished_path,
    write_state,
)
from nearfar.embeddings import model_inputs
from nearfar.training import TrainingInterruptedError, termination_flag
from nearfar.training_clips import sound_digest
from nearfar.training_options import TrainingOptions

logger = logging.getLogger(__name__)

SAVE_SECONDS = 60  # between two saved states of an unfinished network


@dataclass(frozen=True)
class StackedFrames:
    """The input vectors of one network: every stack of consecutive frames of every clip.

    Attributes:
        frames: (total, num_mel_bins) float32, the frames of all clips one after the other.
        starts: (N,) int64, the first frame of each vector.
        domain_ids: (N,) int64, the domain of each vector's clip, an index into `domains`.
        domains: "source", "target" or None.
        num_stacked_frames: Frames per vector.
    """

    frames: Tensor
    starts: Tensor
    domain_ids: Tensor
    domains: Sequence[str | None]
    num_stacked_frames: int

    def __len__(self) -> int:
        return len(self.starts)

    def vectors(self, rows: Tensor) -> Tensor:
        """Return some vectors, (len(rows), num_stacked_frames * num_mel_bins)."""
        offsets = torch.arange(self.num_stacked_frames, device=self.starts.device)
        return self.frames[self.starts[rows][:, None] + offsets].flatten(1)


def train_autoencoders(
    model: Any,  # noqa: ANN401 - an AutoencoderModel, which nearfar must not import
    build_network: Callable[[], nn.Module],
    clips: Dataset[dict[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    feature_extractor: Any,  # noqa: ANN401 - an AsdFeatureExtractor
    options: TrainingOptions,
    accelerator: Accelerator,
    *,
    extraction_batch_size: int,
    state_dir: Path,
    resume_from: Path | None = None,
) -> None:
    """Train the networks of every machine of a model, in place.

    A machine's weights depend on its own clips, the options and the seed alone. Several processes
    share the machines, and all need `state_dir`.

    Args:
        model: Its networks take over what is trained.
        build_network: Returns a new network, with weights drawn from torch's generator.
        clips: Decoded training clips.
        rows: Their rows, undecoded: machine, file_name, domain.
        feature_extractor: The model's.
        options: Of the training; those of `autoencoder_states.USED_OPTIONS` are read.
        accelerator: Gives the device, the processes and the log.
        extraction_batch_size: Clips whose spectrograms are computed at once.
        state_dir: Where the networks of each finished machine, and the state of an unfinished one,
            are saved. Without `resume_from` those of an earlier training are removed.
        resume_from: A folder of such states; a machine finished there is not trained again.

    Raises:
        TrainingInterruptedError: Ctrl-C or a termination signal; everything is saved.
        FloatingPointError: A loss is not finite.
        ValueError: A state belongs to other clips or options, or a machine has too few vectors.
    """
    if not 0 <= options.validation_share < 1:
        raise ValueError(f"validation_share={options.validation_share} must be in [0, 1).")
    if accelerator.is_main_process:
        state_dir.mkdir(parents=True, exist_ok=True)
        for path in state_dir.glob(f"{STATE_PREFIX}*") if resume_from is None else ():
            path.unlink()
    accelerator.wait_for_everyone()
    machines = list(model.config.machines)
    of_machine = {m: [i for i, row in enumerate(rows) if row["machine"] == m] for m in machines}
    digests = {
        machine: training_digest(
            [rows[i] for i in indices],
            model.config,
            options,
            sound=sound_digest(clips, indices),
        )
        for machine, indices in of_machine.items()
    }
    with termination_flag() as interrupted:
        for machine in machines[accelerator.process_index :: accelerator.num_processes]:
            state = None
            if resume_from is not None:
                state = read_state(finished_path(resume_from, machine), digests[machine])
            if state is not None:
                logger.info("%s is trained already.", machine)
                write_state(finished_path(state_dir, machine), digests[machine], state)
                continue
            loader = clip_loader(
                clips, of_machine[machine], feature_extractor, options, extraction_batch_size
            )
            domains = [rows[i]["domain"] for i in of_machine[machine]]
            heard = hear(model, loader, domains, accelerator.device)
            state = {}
            for channel, data in heard.items():
                unfinished = UnfinishedState(
                    read=None
                    if resume_from is None
                    else unfinished_path(resume_from, machine, channel),
                    write=unfinished_path(state_dir, machine, channel),
                    digest=digests[machine],
                )
                name = machine if len(heard) == 1 else f"{machine} {channel}"
                network = train_network(
                    build_network, data, options, accelerator, name, unfinished, interrupted
                )
                state |= {f"{channel}.{key}": t for key, t in network.state_dict().items()}
            write_state(finished_path(state_dir, machine), digests[machine], state)
            for channel in heard:
                unfinished_path(state_dir, machine, channel).unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    for machine in machines:
        state = read_state(finished_path(state_dir, machine), digests[machine])
        model.networks_of(machine).load_state_dict(state)


def clip_loader(
    clips: Dataset[dict[str, Any]],
    indices: Sequence[int],
    feature_extractor: Any,  # noqa: ANN401 - as above
    options: TrainingOptions,
    batch_size: int,
) -> DataLoader[Any]:
    """Return the batches of some clips, as a model takes them."""
    return DataLoader(
        Subset(clips, indices),
        batch_size=batch_size,
        collate_fn=lambda rows: model_inputs(rows, feature_extractor),
        num_workers=options.dataloader_num_workers,
    )


@torch.no_grad()
def hear(
    model: Any,  # noqa: ANN401 - as above
    loader: Iterable[Mapping[str, Tensor]],
    domains: Sequence[str | None],
    device: torch.device,
) -> dict[str, StackedFrames]:
    """Return channel -> the spectrograms of one machine's clips; they are held in memory.

    Args:
        model: Its `log_mel` is used, and its config.
        loader: Batches of the clips.
        domains: Of each clip.
        device: Where the result lies.
    """
    frames: dict[str, list[Tensor]] = {channel: [] for channel in model.config.channels}
    for batch in loader:
        log_mel, num_frames = model.log_mel(
            batch["near_values"], batch["far_values"], batch["attention_mask"], batch["has_far"]
        )
        for channel, spectrograms in log_mel.items():
            pairs = zip(spectrograms, num_frames.tolist(), strict=True)
            frames[channel] += [spectrogram[:count].clone() for spectrogram, count in pairs]
    stacked = model.config.num_stacked_frames
    lengths = torch.tensor([len(clip) for clip in frames[model.config.channels[0]]])
    first = lengths.cumsum(0) - lengths
    num_vectors = lengths - stacked + 1
    starts = [torch.arange(n) + start for n, start in zip(num_vectors, first, strict=True)]
    names = sorted(set(domains), key=str)
    ids = torch.tensor([names.index(domain) for domain in domains])
    return {
        channel: StackedFrames(
            frames=torch.cat(spectrograms).to(device),
            starts=torch.cat(starts).to(device),
            domain_ids=ids.repeat_interleave(num_vectors).to(device),
            domains=names,
            num_stacked_frames=stacked,
        )
        for channel, spectrograms in frames.items()
    }


@dataclass
class NetworkTraining:
    """A network and all on which its next epoch depends."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    generator: torch.Generator
    epoch: int = 0

    def state_dict(self) -> dict[str, Tensor]:
        """Return everything as tensors."""
        state = {f"network.{name}": t for name, t in self.network.state_dict().items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{index}.{name}": t for name, t in values.items()}
        return state | {"generator": self.generator.get_state(), "epoch": torch.tensor(self.epoch)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state_dict` returned."""
        prefix = "network."
        self.network.load_state_dict(
            {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
        )
        of_parameter: dict[int, dict[str, Tensor]] = {}
        for name, tensor in state.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                of_parameter.setdefault(int(index), {})[key] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": of_parameter, "param_groups": groups})
        self.generator.set_state(state["generator"])
        self.epoch = int(state["epoch"])


def train_network(
    build_network: Callable[[], nn.Module],
    data: StackedFrames,
    options: TrainingOptions,
    accelerator: Accelerator,
    name: str,
    unfinished: UnfinishedState,
    interrupted: Sequence[int] = (),
) -> nn.Module:
    """Return a new network, trained to reconstruct its input, with its residuals' covariances.

    Args:
        build_network: As `train_autoencoders`'.
        data: Its input.
        options: Of the training.
        accelerator: Gives the device and the log.
        name: Of the machine, for the log and the errors.
        unfinished: Where the training is saved, and perhaps goes on from.
        interrupted: Training stops after an epoch in which this is no longer empty.

    Raises:
        TrainingInterruptedError: It was interrupted; it is saved.
        FloatingPointError: The loss is not finite.
        ValueError: There are too few vectors, or their residuals have no covariance.
    """
    training, validation = training_and_validation(len(data), options, name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        network: Any = build_network().to(accelerator.device)
    progress = NetworkTraining(
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), lr=options.learning_rate, fused=True),
        generator=torch.Generator().manual_seed(options.seed),
    )
    if unfinished.read is not None and (state := read_state(unfinished.read, unfinished.digest)):
        progress.load_state_dict(state)
        logger.info("%s goes on after epoch %d.", name, progress.epoch)

    def batches(rows: Tensor) -> list[Tensor]:
        split = rows.to(data.starts.device).split(options.train_batch_size)
        return [batch for batch in split if len(batch) > 1]  # of one vector there is no variance

    def shuffled() -> list[Tensor]:
        return batches(training[torch.randperm(len(training), generator=progress.generator)])

    total, saved = options.num_train_epochs, time.monotonic()
    with tqdm(
        total=total,
        initial=progress.epoch,
        desc=name,
        unit="epoch",
        disable=not accelerator.is_main_process,
    ) as bar:
        while progress.epoch < total:
            values = {"loss": train_epoch(network, data, shuffled(), progress.optimizer)}
            progress.epoch += 1
            if not math.isfinite(values["loss"]):
                raise FloatingPointError(
                    f"The loss of {name} became {values['loss']} in epoch {progress.epoch}. Check "
                    f"its clips, and train anew with a learning_rate below {options.learning_rate}."
                )
            if watched := batches(validation):
                values["validation_loss"] = reconstruction_error(network, data, watched)
            accelerator.log({f"{name}/{k}": value for k, value in values.items()}, progress.epoch)
            bar.set_postfix({key: f"{value:.3f}" for key, value in values.items()})
            bar.update()
            last = bool(interrupted) or progress.epoch == total
            if last or time.monotonic() - saved > SAVE_SECONDS:
                write_state(unfinished.write, unfinished.digest, progress.state_dict())
                saved = time.monotonic()
            if interrupted:
                raise TrainingInterruptedError(
                    f"Interrupted in {name} after epoch {progress.epoch} of {total}; everything is "
                    "saved. Go on with the same command and --resume_from_checkpoint latest"
                )
    for domain, covariance in residual_covariances(network, data, shuffled()).items():
        try:
            network.set_covariance(domain, covariance)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return network  # type: ignore[no-any-return]  # an nn.Module, which has no set_covariance


def training_and_validation(
    num_vectors: int, options: TrainingOptions, name: str
) -> tuple[Tensor, Tensor]:
    """Return the rows to train on and those to validate on, or raise ValueError if too few."""
    generator = torch.Generator().manual_seed(options.seed)
    order = torch.randperm(num_vectors, generator=generator)
    num_validation = int(options.validation_share * num_vectors)
    if num_vectors - num_validation < 2:
        raise ValueError(
            f"{name} has {num_vectors} input vectors, {num_vectors - num_validation} of them to "
            "train on, but batch normalisation needs 2. Add normal clips of it, or leave it out "
            "with machine_types."
        )
    return order[num_validation:], order[:num_validation]


def train_epoch(
    network: nn.Module,
    data: StackedFrames,
    batches: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
) -> float:
    """Take one step per batch of rows and return the mean squared error, in dB squared."""
    network.train()
    total = torch.zeros((), device=data.frames.device)
    for rows in batches:
        vectors = data.vectors(rows)
        loss = F.mse_loss(network(vectors), vectors)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(rows)
    return total.item() / sum(map(len, batches))


@torch.no_grad()
def reconstruction_error(
    network: nn.Module, data: StackedFrames, batches: Sequence[Tensor]
) -> float:
    """Return the mean squared error of some rows, by the running statistics."""
    network.eval()
    total = torch.zeros((), device=data.frames.device)
    for rows in batches:
        vectors = data.vectors(rows)
        total += F.mse_loss(network(vectors), vectors) * len(rows)
    return total.item() / sum(map(len, batches))


@torch.no_grad()
def residual_covariances(
    network: nn.Module, data: StackedFrames, batches: Iterable[Tensor]
) -> dict[str | None, Tensor]:
    """Return domain -> covariance of a network's residuals, (num_mel_bins, num_mel_bins) float64.

    As in the official baseline: a residual of stacked frames counts as so many vectors of
    num_mel_bins. Those of a domain are centred within each batch, and the sum of their products is
    divided by the number of vectors, less one.

    Args:
        network: Used with its running statistics.
        data: Its input.
        batches: Rows of the training vectors, domains mixed as in training.
    """
    network.eval()
    num_mel_bins = data.frames.shape[1]
    sums = torch.zeros(len(data.domains), num_mel_bins, num_mel_bins, dtype=torch.float64)
    counts = [0] * len(data.domains)
    for rows in batches:
        vectors = data.vectors(rows)
        residual = (vectors - network(vectors)).double().cpu()
        for i in data.domain_ids[rows].unique().tolist():
            own = residual[data.domain_ids[rows].cpu() == i].view(-1, num_mel_bins)
            centred = own - own.mean(dim=0)
            sums[i] += centred.T @ centred
            counts[i] += len(own)
    return {
        domain: sums[i] / (counts[i] - 1) for i, domain in enumerate(data.domains) if counts[i] > 1
    }
