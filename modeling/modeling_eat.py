"""EAT (Chen et al., 2024), a Transformer over 16 x 16 patches of a log-mel spectrogram."""

from collections.abc import Callable
from typing import Any, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import TransformersKwargs, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .attention import additive_mask, eager_attention_forward
from .configuration_asd import EatConfig
from .encoder_classifier import EncoderForAudioClassification
from .encoder_inputs import (
    check_attention_mask,
    check_num_samples,
    check_one_input,
    check_spectrogram,
    check_waveform,
)
from .encoder_layer import EncoderLayer, LayerConfig
from .spectrogram import KaldiLogMel


class EatEmbedding(nn.Module):
    """Tokens of the spectrogram: the class token, then its patches, each with its position.

    The position table belongs to the checkpoint: it is a buffer, saved and loaded, never trained.
    """

    def __init__(self, config: EatConfig) -> None:
        super().__init__()
        self.grid = config.max_length, config.num_mel_bins // config.patch_size  # (time, band)
        self.convolution = nn.Conv2d(
            1, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )
        self.class_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        time, band = self.grid
        self.positions: Tensor
        self.register_buffer("positions", torch.empty(1, time * band, config.hidden_size))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.input_dropout)

    def forward(self, features: Tensor) -> Tensor:
        """Turn (batch, frames, mel bins) into (batch, 1 + time * band, hidden).

        The band runs fastest. A last patch that is not full is left out.
        """
        patches = self.convolution(features.to(self.convolution.weight.dtype)[:, None])
        patches = patches.flatten(2).transpose(1, 2)  # (B, time * band, hidden)
        patches = patches + self.positions[:, : patches.shape[1]]
        tokens = torch.cat([self.class_token.expand(len(patches), -1, -1), patches], dim=1)
        embedded: Tensor = self.dropout(self.norm(tokens))
        return embedded


class EatAttention(nn.Module):
    """Self-attention with one projection for queries, keys and values together."""

    is_causal = False

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.config = config
        self.head_size = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_size**-0.5
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: Tensor,
        token_mask: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[Tensor, Tensor | None]:
        """Return the context (batch, tokens, hidden) and, where eager, the weights.

        Args:
            hidden_states: (batch, tokens, hidden).
            token_mask: (batch, tokens) bool, False where nothing may be looked at.
            **kwargs: To the attention function.
        """
        # (B, N, 3 * hidden) -> three of (B, heads, N, head_size)
        heads = self.qkv(hidden_states).unflatten(-1, (3, -1, self.head_size))
        query, key, value = heads.transpose(1, 3).unbind(dim=2)
        mask = None if token_mask is None else additive_mask(token_mask, query.dtype)
        attend: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        context, weights = attend(
            self,
            query,
            key,
            value,
            mask,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.out_proj(context.flatten(2)), weights


class EatLayer(EncoderLayer):
    """Post-norm Transformer layer.

    Args:
        config: Any encoder's whose fields are those of `LayerConfig`.
    """

    def __init__(self, config: LayerConfig) -> None:
        super().__init__(config, EatAttention(config))


class EatPreTrainedModel(PreTrainedModel):
    """What the EAT models share: names, capabilities, initial weights."""

    config_class = EatConfig
    config: EatConfig
    base_model_prefix = "eat"
    main_input_name = "input_values"
    input_modalities = ["audio"]  # noqa: RUF012 an instance attribute above
    supports_gradient_checkpointing = True
    _no_split_modules = ["EatEmbedding", "EatLayer"]  # noqa: RUF012 likewise
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": EatLayer, "attentions": EatAttention}  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw weights as the authors do; the position table is computed, never drawn."""
        super()._init_weights(module)
        if isinstance(module, EatEmbedding):
            init_embedding(module, std=self.config.initializer_range)


class EatModel(EatPreTrainedModel):
    """The EAT encoder: waveform in, one vector per token and layer out.

    The first token is the class token, which the authors recommend as a clip's embedding. Patches
    follow, 16 frames (160 ms) by 16 mel bins each, ordered by time, then by band: patch t * 8 + b.
    The last patch of a clip may be filled up with zeros: it counts as sound. A clip's tokens come
    out the same alone, in a batch and beside longer clips.

    To step through the layers by hand:

        features = model.spectrogram(input_values, attention_mask)
        token_mask = model.token_mask(attention_mask)
        hidden_states = model.embed_patches(features)
        for layer in model.layers:
            hidden_states = layer(hidden_states, token_mask)
        class_tokens, patches = model.split(hidden_states)

    The linear maps of a layer, say for LoRA: "qkv", "out_proj", "fc1" and "fc2".

    Args:
        config: Of the encoder.
    """

    num_class_tokens = 1

    def __init__(self, config: EatConfig) -> None:
        super().__init__(config)
        self.log_mel = KaldiLogMel(
            sampling_rate=config.sampling_rate,
            num_mel_bins=config.num_mel_bins,
            window="hanning",
        )
        self.embedding = EatEmbedding(config)
        self.layers = nn.ModuleList(EatLayer(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    @merge_with_config_defaults  # type: ignore[untyped-decorator]  # transformers' own
    @capture_outputs  # type: ignore[untyped-decorator]  # likewise
    def forward(
        self,
        input_values: Tensor | None = None,
        *,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """Encode clips.

        Args:
            input_values: (batch, num_samples) in [-1, 1] at `config.sampling_rate`, padded at the
                end. Give either this or `input_features`.
            input_features: (batch, frames, mel bins), what `spectrogram` returns.
            attention_mask: (batch, num_samples), 1 where there is sound, 0 in the padding behind
                it; of samples also with `input_features`. None means that no clip is padded.
            **kwargs: `output_hidden_states`, `output_attentions` (eager attention only),
                `return_dict`.

        Returns:
            `last_hidden_state` (batch, 1 + patches, hidden), the class token first, and, on
            request, `hidden_states`: the input of layer 1, then the output of each layer. What
            stands at masked patches is finite but means nothing: leave it out by
            `patch_mask(attention_mask)`.

        Raises:
            ValueError: Both inputs or neither came, a clip is shorter than one frame or longer
                than the position table, or the mask does not fit.
        """
        hidden_states, token_mask = self.layer_inputs(
            input_values, input_features=input_features, attention_mask=attention_mask
        )
        for layer in self.layers:
            # By position: reentrant activation checkpointing sees no other gradients.
            hidden_states = layer(hidden_states, token_mask, **kwargs)
        return BaseModelOutput(last_hidden_state=hidden_states)

    def layer_inputs(
        self,
        input_values: Tensor | None = None,
        *,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return what the first layer takes: hidden states and token mask.

        The arguments are those of `forward`.
        """
        check_one_input(type(self).__name__, input_values, input_features)
        if input_values is not None:
            features = self.spectrogram(input_values, attention_mask)
        else:
            assert input_features is not None  # checked above
            self._check_features(input_features, attention_mask)
            features = input_features
        token_mask = None
        if attention_mask is not None and self.config.target_length is None:
            token_mask = self.token_mask(attention_mask)
        return self.embed_patches(features), token_mask

    def spectrogram(self, input_values: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the normalised log-mel spectrogram, (batch, frames, mel bins) float32.

        Behind each clip's own end the log-mel energy is set to 0, which is a loud sound, before it
        is normalised: so the authors fill up a patch, or a clip up to `config.target_length`. They
        also subtract each clip's mean first; here is no need to, as every frame loses its own.

        Args:
            input_values: (batch, num_samples) in [-1, 1] at `config.sampling_rate`.
            attention_mask: As in `forward`.
        """
        check_waveform(input_values)
        num_samples = input_values.shape[1]
        self._check_num_samples(num_samples)
        lengths = None
        if attention_mask is not None:
            self._check_mask(attention_mask, input_values, lambda n: n == num_samples)
            lengths = attention_mask.sum(dim=1, dtype=torch.long)
        log_mel = self.log_mel(input_values)
        frames = self.patch_grid(num_samples)[0] * self.config.patch_size
        log_mel = F.pad(log_mel, (0, 0, 0, frames - log_mel.shape[1]))  # negative: cut
        if lengths is not None:
            own = torch.arange(frames, device=lengths.device) < self._num_frames(lengths)[:, None]
            log_mel = log_mel.where(own[..., None], 0.0)
        normalised: Tensor = log_mel - self.config.spectrogram_mean
        return normalised / (2 * self.config.spectrogram_std)

    def embed_patches(self, features: Tensor) -> Tensor:
        """Return the input of the first layer, (batch, 1 + patches, hidden).

        Args:
            features: (batch, frames, mel bins), normalised.

        Raises:
            ValueError: They are longer than the position table.
        """
        longest = self.config.max_length * self.config.patch_size
        if features.shape[1] > longest:
            seconds = self.log_mel.num_samples(longest) / self.config.sampling_rate
            raise ValueError(
                f"Clips of {features.shape[1]} frames came; the position table ends after "
                f"{longest} ({seconds:.1f} s). Cut the clips, or let config.target_length cut them."
            )
        embedded: Tensor = self.embedding(features)
        return embedded

    def split(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Return the class tokens (batch, 1, hidden) and the patches (batch, patches, hidden)."""
        return hidden_states[:, :1], hidden_states[:, 1:]

    @property
    def num_samples_per_patch(self) -> int:
        """Samples of the shortest clip that can be encoded: one frame, filled up to a patch."""
        return self.log_mel.frame_length

    def patch_grid(self, num_samples: int) -> tuple[int, int]:
        """Return how many patches clips of `num_samples` give, (time, band)."""
        size = self.config.patch_size
        frames = self.log_mel.num_frames(num_samples)
        if frames and self.config.target_length is not None:
            frames = self.config.target_length
        return -(-frames // size), self.config.num_mel_bins // size

    def patch_mask(self, attention_mask: Tensor) -> Tensor:
        """Return which patches count as sound, (batch, patches) bool, without the class token.

        A clip's last patch does, though zeros may fill it up; with `config.target_length`, so do
        all patches of all clips.

        Args:
            attention_mask: (batch, num_samples), 1 where there is sound, 0 in the padding at the
                end.
        """
        time, band = self.patch_grid(attention_mask.shape[1])
        lengths = attention_mask.sum(dim=1, dtype=torch.long)
        if self.config.target_length is not None:
            lengths = torch.full_like(lengths, self.log_mel.num_samples(self.config.target_length))
        starts = self.config.patch_size * torch.arange(time, device=lengths.device)  # in frames
        return (starts < self._num_frames(lengths)[:, None]).repeat_interleave(band, dim=1)

    def token_mask(self, attention_mask: Tensor) -> Tensor:
        """Return `patch_mask` with the class token before it, (batch, 1 + patches) bool."""
        return F.pad(self.patch_mask(attention_mask), (1, 0), value=True)

    def _num_frames(self, lengths: Tensor) -> Tensor:
        """Return the whole frames of clips of so many samples; not positive where there is none."""
        return 1 + (lengths - self.log_mel.frame_length) // self.log_mel.hop_length

    def _check_features(self, input_features: Tensor, attention_mask: Tensor | None) -> None:
        size = self.config.patch_size
        check_spectrogram(input_features, self.config.num_mel_bins)
        frames = input_features.shape[1]
        if frames % size or not frames:
            raise ValueError(
                f"input_features have {frames} frames, which is not a multiple of {size}: no whole "
                "number of patches. Take them from spectrogram(), which fills up the last patch."
            )
        if attention_mask is not None:
            self._check_mask(
                attention_mask, input_features, lambda n: self.patch_grid(n)[0] == frames // size
            )

    def _check_mask(self, mask: Tensor, clips: Tensor, fits: Callable[[int], bool]) -> None:
        check_attention_mask(
            mask,
            clips,
            fits=fits,
            needed=self.num_samples_per_patch,
            sampling_rate=self.config.sampling_rate,
        )

    def _check_num_samples(self, num_samples: int) -> None:
        check_num_samples(
            num_samples,
            needed=self.num_samples_per_patch,
            sampling_rate=self.config.sampling_rate,
        )


class EatForAudioClassification(EatPreTrainedModel, EncoderForAudioClassification):
    """EAT with the head that fine-tuning added: class token, LayerNorm, linear map.

    The authors fine-tuned with clips of 10 s and target_length 1024.

    Args:
        config: Of the encoder; `num_labels` or `id2label` says which classes.
    """

    def __init__(self, config: EatConfig) -> None:
        super().__init__(config)
        self.eat = EatModel(config)
        num_labels: Any = config.num_labels  # its type leaves None open
        self.head_norm = nn.LayerNorm(config.hidden_size, eps=config.head_norm_eps)
        self.head = nn.Linear(config.hidden_size, num_labels)
        self.post_init()

    def classify(self, hidden_states: Tensor, attention_mask: Tensor | None) -> Tensor:  # noqa: ARG002 another head's
        """Return the logits of the class token, (batch, num_labels)."""
        logits: Tensor = self.head(self.head_norm(hidden_states[:, 0]))
        return logits


def init_embedding(embedding: Any, *, std: float) -> None:  # noqa: ANN401  EAT's or FISHER's
    """Draw a token embedding's weights and compute its position table, of `embedding.grid`."""
    # Xavier for the map from a patch's pixels.
    weight = embedding.convolution.weight
    init.normal_(weight, std=(2 / (weight[0].numel() + weight.shape[0])) ** 0.5)
    init.normal_(embedding.class_token, std=std)
    time, band = embedding.grid
    table = sine_positions(time, band, weight.shape[0])
    init.copy_(embedding.positions, torch.from_numpy(table)[None])


def sine_positions(time: int, band: int, size: int) -> NDArray[np.float32]:
    """Return sines and cosines of two axes, (time * band, size), the band running fastest.

    The first half of a row is of the band, the last half of the time; each has size / 4 sines and
    as many cosines, at rates that fall geometrically from 1 towards 1 / 10,000 radians per patch.
    """
    rates = 10_000.0 ** -(np.arange(size // 4) / (size // 4))

    def waves(count: int) -> NDArray[np.float64]:
        angles = np.arange(count)[:, None] * rates
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    rows = [np.tile(waves(band), (time, 1)), np.repeat(waves(time), band, axis=0)]
    return np.concatenate(rows, axis=1).astype(np.float32)


EatModel.register_for_auto_class("AutoModel")
EatForAudioClassification.register_for_auto_class("AutoModelForAudioClassification")

__all__ = [
    "EatAttention",
    "EatForAudioClassification",
    "EatLayer",
    "EatModel",
    "EatPreTrainedModel",
    "init_embedding",
    "sine_positions",
]
