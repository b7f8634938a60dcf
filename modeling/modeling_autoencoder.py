"""The official baselines of DCASE Task 2: one autoencoder per machine, scored by what it misses.

Written from their description (`nttcslab/dcase2023_task2_baseline_ae`, version 5).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils.generic import ModelOutput, can_return_tuple

from .anomaly_map import AnomalyMap
from .configuration_autoencoder import AutoencoderConfig
from .detector_base import Detector
from .detector_checkpoint import DetectorPreTrainedModel
from .encoder_inputs import check_far
from .map_axes import frame_axes
from .spectrogram import LibrosaLogMel

# Whose residuals have a covariance of their own; None is for clips of an unknown domain.
DOMAINS = ("source", "target", None)


@dataclass
class AutoencoderOutput(ModelOutput):
    """What an `AutoencoderModel` makes of a batch.

    Attributes:
        embedding: (batch, views, 1, 1) float32, the anomaly scores: a view for each channel. If no
            machines were given: for each machine, in the config's order, and each of its channels.
    """

    embedding: Tensor | None = None


class ReconstructionNetwork(nn.Module):
    """An autoencoder of stacked log-mel frames, and the scores made of its residuals.

    640-128-128-128-128-8-128-128-128-128-640 by default: linear maps, each but the last followed by
    BatchNorm and ReLU. Weights start as torch's own layers do.

    Args:
        config: Its sizes and `scoring` are read.
    """

    whitening: Tensor

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.scoring = config.scoring
        self.num_mel_bins = config.num_mel_bins
        self.num_stacked_frames = config.num_stacked_frames
        size = config.num_stacked_frames * config.num_mel_bins
        side = [config.hidden_size] * config.num_hidden_layers
        layers: list[nn.Module] = []
        for before, after in pairwise([size, *side, config.bottleneck_size, *side]):
            norm = nn.BatchNorm1d(
                after, momentum=config.batch_norm_momentum, eps=config.batch_norm_eps
            )
            layers += [nn.Linear(before, after), norm, nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(config.hidden_size, size))
        # The inverse of a domain's covariance is W @ W.T; set_covariance makes W. Zero: no domain.
        shape = (len(DOMAINS), config.num_mel_bins, config.num_mel_bins)
        self.register_buffer("whitening", torch.zeros(shape))

    def forward(self, vectors: Tensor) -> Tensor:
        """Reconstruct stacked frames, (rows, num_stacked_frames * num_mel_bins) to the same."""
        reconstruction: Tensor = self.layers(vectors)
        return reconstruction

    def set_covariance(self, domain: str | None, covariance: Tensor) -> None:
        """Take over the covariance of a domain's residuals, for the Mahalanobis score.

        Along a direction in which they never varied the inverse is zero, not infinite.

        Args:
            domain: One of `DOMAINS`.
            covariance: (num_mel_bins, num_mel_bins) float64.

        Raises:
            ValueError: It is not finite, or zero.
        """
        if not bool(covariance.isfinite().all()) or not bool(covariance.any()):
            raise ValueError(
                f"The residuals of domain {domain!r} have no covariance that is finite and not "
                "zero. Check the clips for silence, or leave the machine out."
            )
        variances, directions = torch.linalg.eigh(covariance.double().cpu())
        floor = variances[-1] * len(variances) * torch.finfo(torch.float64).eps
        scale = torch.where(variances > floor, variances.clamp_min(floor).rsqrt(), 0.0)
        self.whitening[DOMAINS.index(domain)] = (directions * scale).to(self.whitening)

    def anomaly_score(self, log_mel: Tensor, num_frames: Tensor) -> Tensor:
        """Return (batch,) float32, by the config's `scoring`; higher is more anomalous.

        Args:
            log_mel: (batch, frames, num_mel_bins), padded at the end.
            num_frames: (batch,) frames of each clip, `num_stacked_frames` or more.
        """
        residual = self.residual(log_mel)
        num_rows = num_frames - self.num_stacked_frames + 1  # (B,)
        own = torch.arange(residual.shape[1], device=residual.device) < num_rows[:, None]
        residual = residual * own[..., None]
        if self.scoring == "mse":
            error: Tensor = residual.square().mean(dim=2).sum(dim=1) / num_rows
            return error
        # The authors average all entries of residual @ inverse @ residual.T over the clip's frames,
        # those between two different frames too: it is the form of the mean residual.
        frames = residual.unflatten(2, (self.num_stacked_frames, self.num_mel_bins))
        mean = frames.mean(dim=2).sum(dim=1) / num_rows[:, None]  # (B, num_mel_bins)
        whitened = mean @ self.known_whitening().float()  # (domains, B, num_mel_bins)
        distances: Tensor = whitened.square().sum(dim=2)
        return distances.amin(dim=0)

    def score_shares(self, log_mel: Tensor) -> Tensor:
        """Return the share of each frame and filter in one clip's score, which is their sum.

        The mean squared error is a sum of squares as it is. The Mahalanobis distance m' C^-1 m is
        one of products, of each residual with its filter of C^-1 m, as m is the mean residual.

        Args:
            log_mel: (1, frames, num_mel_bins), without padding.

        Returns:
            (frames, num_mel_bins) float64.
        """
        shape = (self.num_stacked_frames, self.num_mel_bins)
        frames = self.residual(log_mel)[0].cpu().double().unflatten(1, shape)
        if self.scoring == "mse":
            shares = frames.square() / frames.numel()
        else:
            mean = frames.mean(dim=(0, 1))
            whitening = self.known_whitening().cpu().double()  # (domains, bins, bins)
            nearest = int((mean @ whitening).square().sum(dim=1).argmin())
            shares = frames * (whitening[nearest] @ (mean @ whitening[nearest]))
            shares = shares / (frames.shape[0] * frames.shape[1])
        total: Tensor = shares.new_zeros(log_mel.shape[1:])
        for offset, part in enumerate(shares.unbind(dim=1)):  # row r holds the frames from r on
            total[offset : offset + len(part)] += part
        return total

    def residual(self, log_mel: Tensor) -> Tensor:
        """Return what the network makes of each stack of frames, less the stack itself.

        Args:
            log_mel: (batch, frames, num_mel_bins).

        Returns:
            (batch, frames - num_stacked_frames + 1, num_stacked_frames * num_mel_bins) float32.
        """
        vectors = log_mel.unfold(1, self.num_stacked_frames, 1).mT.flatten(2)  # (B, rows, size)
        vectors = vectors.to(self.whitening.dtype)
        residual: Tensor = (self(vectors.flatten(0, 1)).view_as(vectors) - vectors).float()
        return residual

    def known_whitening(self) -> Tensor:
        """Return W of each domain that has a covariance, (domains, num_mel_bins, num_mel_bins)."""
        known = self.whitening.flatten(1).any(dim=1)
        if not bool(known.any()):
            raise ValueError(
                "This network has no covariance of residuals, so there is no Mahalanobis score. "
                "Train it with train.py, or take scoring='mse'."
            )
        return self.whitening[known]


class AutoencoderModel(DetectorPreTrainedModel):
    """Clips -> anomaly scores, by the networks of each clip's machine."""

    config_class = AutoencoderConfig
    config: AutoencoderConfig
    base_model_prefix = "autoencoder"
    # In bfloat16, decibels around -50 are steps of a quarter.
    _keep_in_fp32_modules_strict = ["networks"]  # noqa: RUF012 as transformers spells it
    AUTO_MAP: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_autoencoder.AutoencoderConfig",
        "AutoModel": "modeling_autoencoder.AutoencoderModel",
    }
    reads_machines: ClassVar[bool] = True

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__(config)
        self.spectrogram = LibrosaLogMel(
            sampling_rate=config.sampling_rate,
            num_mel_bins=config.num_mel_bins,
            n_fft=config.n_fft,
            hop_length=config.hop_length,
        )
        self.networks = nn.ModuleList(  # not by name: a module's name may hold no dot
            nn.ModuleDict({channel: ReconstructionNetwork(config) for channel in config.channels})
            for _ in config.machines
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):  # as torch's own
            bound = 1 / math.sqrt(module.in_features)
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, ReconstructionNetwork):
            init.zeros_(module.whitening)
        else:
            super()._init_weights(module)

    @property
    def min_num_samples(self) -> int:
        """Samples of the shortest clip that has one stack of frames."""
        return self.spectrogram.num_samples(self.config.num_stacked_frames)

    def networks_of(self, machine: str) -> nn.ModuleDict:
        """Return a machine's networks, channel -> `ReconstructionNetwork`.

        Raises:
            KeyError: There are none of that name.
        """
        machines = list(self.config.machines)
        if machine not in machines:
            raise KeyError(
                f"There is no network of {machine!r}. There are those of {machines}; train one of "
                "its own with train.py."
            )
        networks: Any = self.networks[machines.index(machine)]
        return networks  # type: ignore[no-any-return]  # a ModuleList may hold any module

    @can_return_tuple  # type: ignore[untyped-decorator]  # transformers' own
    def forward(
        self,
        near_values: Tensor,
        far_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        front_end_strength: Tensor | None = None,  # noqa: ARG002  AsdModel's: there is no front end
        has_far: Tensor | None = None,
        machines: Sequence[str] | None = None,
    ) -> AutoencoderOutput:
        """Return the anomaly scores of a batch of clips, as embeddings of size 1.

        Args:
            near_values: (batch, num_samples) float32 in [-1, 1], padded at the end.
            far_values: The far microphone, same shape; read where the config's channels say so.
            attention_mask: (batch, num_samples), 1 = sound, then 0 = padding. None: no padding.
            front_end_strength: Not read.
            has_far: (batch,) bool, as AsdFeatureExtractor returns it.
            machines: Full name of each clip's machine. None: every machine's networks hear every
                clip.

        Raises:
            KeyError: A machine has no network.
            ValueError: The far channel is to be heard and missing, or a clip is shorter than one
                stack of frames.
        """
        log_mel, num_frames = self.log_mel(near_values, far_values, attention_mask, has_far)
        channels = list(self.config.channels)

        def heard_by(machine: str, rows: Tensor) -> Tensor:
            networks: Any = self.networks_of(machine)
            scores = [
                networks[c].anomaly_score(log_mel[c][rows], num_frames[rows]) for c in channels
            ]
            return torch.stack(scores, dim=1)  # (rows, channels)

        if machines is None:
            everything = torch.arange(len(near_values), device=near_values.device)
            views = [heard_by(machine, everything) for machine in self.config.machines]
            return AutoencoderOutput(embedding=torch.cat(views, dim=1)[..., None, None])
        if len(machines) != len(near_values):
            raise ValueError(
                f"{len(near_values)} clips came with {len(machines)} machines. Name one per clip."
            )
        scores = log_mel[channels[0]].new_empty(len(machines), len(channels))
        for machine in sorted(set(machines)):
            rows = torch.tensor(
                [i for i, name in enumerate(machines) if name == machine], device=scores.device
            )
            scores[rows] = heard_by(machine, rows)
        return AutoencoderOutput(embedding=scores[..., None, None])

    @torch.no_grad()
    def anomaly_map(
        self,
        inputs: Mapping[str, Tensor | None],
        detector: Detector,
        *,
        machine: str,
        profile: Tensor | None = None,  # noqa: ARG002  AsdModel's: a residual is compared with zero
    ) -> AnomalyMap:
        """Return why one clip scores as it does: its reconstruction error by frame and filter.

        Args:
            inputs: What `forward` takes, of one clip without padding.
            detector: Of the machine.
            machine: Its full name.
            profile: Not read.

        Raises:
            KeyError: The machine has no network.
            ValueError: As `forward`, or the detector's score is no sum.
        """
        names = ("near_values", "far_values", "attention_mask", "has_far")
        given: dict[str, Any] = {name: inputs.get(name) for name in names}
        log_mel, _ = self.log_mel(**given)
        networks: Any = self.networks_of(machine)
        shares = [networks[channel].score_shares(log_mel[channel]) for channel in networks]
        scores = torch.stack([share.sum() for share in shares])
        parts = detector.decompose(scores[None, :, None, None])
        if parts is None:
            raise ValueError(f"{machine} has a map by its norm detector only.")
        weights = parts.direction[0, :, 0, 0]
        values = torch.einsum("c,ctb->tb", weights, torch.stack(shares))
        axes = frame_axes(self.spectrogram, len(values))
        return AnomalyMap(values, axes, "additive", "reconstruction")

    def heard_waveform(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return what the first channel that is heard sounds like, as it came."""
        return inputs[f"{self.config.channels[0]}_values"]

    def log_mel(
        self,
        near_values: Tensor,
        far_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        has_far: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return each channel's spectrogram, (batch, frames, num_mel_bins) in dB, and its lengths.

        Args and errors are `forward`'s. The lengths are the clips' own frames, (batch,) int64.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(near_values, dtype=torch.long)
        if "far" in self.config.channels:
            check_far(far_values, has_far)
        num_samples = attention_mask.sum(dim=1)
        if int(num_samples.amin()) < self.min_num_samples:
            raise ValueError(
                f"A clip has {int(num_samples.amin())} samples; {self.config.num_stacked_frames} "
                f"frames take {self.min_num_samples}. Leave it out."
            )
        waveforms = {"near": near_values, "far": far_values}
        log_mel = {}
        for channel in self.config.channels:
            waveform: Any = waveforms[channel]  # check_far has seen to far
            silenced = waveform.float().masked_fill(attention_mask == 0, 0.0)
            log_mel[channel] = self.spectrogram(silenced)
        return log_mel, self.spectrogram.num_frames(num_samples)


AutoencoderModel.register_for_auto_class("AutoModel")

__all__ = ["DOMAINS", "AutoencoderModel", "AutoencoderOutput", "ReconstructionNetwork"]
