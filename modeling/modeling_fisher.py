"""FISHER (Fan et al., 2025), a Transformer over the sub-bands of a spectrogram, of any rate."""

from collections.abc import Callable
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import TransformersKwargs, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_asd import FisherConfig
from .encoder_inputs import (
    check_attention_mask,
    check_num_samples,
    check_one_input,
    check_waveform,
)
from .modeling_eat import EatAttention, EatLayer, init_embedding
from .spectrogram import LogStft


class FisherEmbedding(nn.Module):
    """Patches of each sub-band, projected, with a position added and a class token in front.

    A patch takes the row of the position table that its place in the sequence names. The table was
    made for a grid of `max_length` by `max_freq` patches, so that row is not the patch's own place
    in the spectrogram; the authors' models were trained this way. The table belongs to the
    checkpoint: it is a buffer, saved and loaded, never trained.
    """

    def __init__(self, config: FisherConfig) -> None:
        super().__init__()
        self.config = config
        self.grid = config.max_length, config.max_freq  # (time, band) of the table
        self.convolution = nn.Conv2d(
            1, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )
        self.class_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.positions: Tensor
        rows = config.max_length * config.max_freq
        self.register_buffer("positions", torch.empty(1, rows, config.hidden_size))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.input_dropout)

    def forward(self, bands: Tensor, token_mask: Tensor | None = None) -> Tensor:
        """Return the tokens (batch, bands, 1 + patches, hidden) of sub-bands.

        Args:
            bands: (batch, bands, frames, band_width). What does not fill a patch is left out.
            token_mask: (batch, 1 + patches) bool, False at patches of padding; None: none are.
        """
        patches = self.convolution(bands.flatten(0, 1).to(self.convolution.weight.dtype)[:, None])
        if self.config.flatten == "time":
            patches = patches.mT  # time runs fastest
        tokens = patches.flatten(2).transpose(1, 2).unflatten(0, bands.shape[:2])  # (B, nb, N, D)
        tokens = tokens + self.position(tokens.shape[2], token_mask)[:, None]
        class_token = self.class_token[:, None].expand(*tokens.shape[:2], -1, -1)
        embedded: Tensor = self.dropout(self.norm(torch.cat([class_token, tokens], dim=2)))
        return embedded

    def position(self, num_patches: int, token_mask: Tensor | None) -> Tensor:
        """Return the rows of the table for a sub-band's patches, (batch or 1, patches, hidden)."""
        table = self.positions
        if num_patches > table.shape[1]:
            raise ValueError(
                f"Clips of {num_patches} patches per sub-band came; the position table ends after "
                f"{table.shape[1]}. Cut the clips, or set a smaller config.max_frames."
            )
        if token_mask is None or self.config.flatten == "freq":
            return table[:, :num_patches]
        # Where time runs fastest, the row depends on how long the clip itself is.
        columns = self.config.band_width // self.config.patch_size
        column, time = torch.meshgrid(
            torch.arange(columns, device=table.device),
            torch.arange(num_patches // columns, device=table.device),
            indexing="ij",
        )
        own = (token_mask[:, 1:].sum(dim=1) // columns)[:, None]  # (B, 1) patches along time
        row = column.flatten() * own + time.flatten().minimum(own - 1)  # (B, N)
        return table[0, row]


class FisherLayer(EatLayer):
    """An EAT layer that every sub-band goes through on its own.

    Hidden states are (batch, bands, tokens, hidden); the token mask is one for all sub-bands.
    """

    def transform(
        self,
        hidden_states: Tensor,
        token_mask: Tensor | None,
        *shared: Tensor,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Tensor:
        """Return the next hidden states; the arguments are those of `forward`."""
        bands = hidden_states.shape[1]
        if token_mask is not None:
            token_mask = token_mask.repeat_interleave(bands, dim=0)
        tokens = super().transform(hidden_states.flatten(0, 1), token_mask, *shared, **kwargs)
        separate: Tensor = tokens.unflatten(0, (-1, bands))
        return separate


class FisherPreTrainedModel(PreTrainedModel):
    """What belongs to every FISHER model: names, capabilities, initial weights."""

    config_class = FisherConfig
    config: FisherConfig
    base_model_prefix = "fisher"
    main_input_name = "input_values"
    input_modalities = ["audio"]  # noqa: RUF012 an instance attribute above
    supports_gradient_checkpointing = True
    _no_split_modules = ["FisherEmbedding", "FisherLayer"]  # noqa: RUF012 likewise
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": FisherLayer, "attentions": EatAttention}  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw weights as for EAT; the position table is computed, never drawn."""
        super()._init_weights(module)
        if isinstance(module, FisherEmbedding):
            init_embedding(module, std=self.config.initializer_range)


class FisherModel(FisherPreTrainedModel):
    """The FISHER encoder: waveform of any sampling rate in, one vector per patch and layer out.

    The spectrogram has frames of 25 ms every 10 ms and bins of 40 Hz. It is split into sub-bands of
    `band_width` bins, low frequencies first, and each goes through the same network on its own,
    with a class token. A higher rate means more sub-bands. Bins above the last whole sub-band are
    dropped; a spectrogram narrower than one is widened with zeros.

    A clip is heard up to `max_frames` frames (10.255 s by default); what comes later counts in its
    mean only. Without `target_length`, the last frames that do not fill a patch are dropped. With
    it, every clip is made that long, by zeros after normalising, and all its patches count: the
    authors' published scores were obtained so, with 1024 frames. Either way a clip's tokens come
    out the same alone, in a batch and beside longer clips.

    The linear maps of a layer, say for LoRA: "qkv", "out_proj", "fc1" and "fc2".

    To step through the layers by hand:

        features = model.spectrogram(input_values, attention_mask)
        token_mask = model.token_mask(attention_mask)
        hidden_states = model.embed_patches(features, token_mask)
        for layer in model.layers:
            hidden_states = layer(hidden_states, token_mask)
        class_tokens, patches = model.split(hidden_states)

    Args:
        config: Of the encoder.
    """

    def __init__(self, config: FisherConfig) -> None:
        super().__init__(config)
        self.log_stft = LogStft()
        self.embedding = FisherEmbedding(config)
        self.layers = nn.ModuleList(FisherLayer(config) for _ in range(config.num_hidden_layers))
        self.post_init()

    @merge_with_config_defaults  # type: ignore[untyped-decorator]  # transformers' own
    @capture_outputs  # type: ignore[untyped-decorator]  # likewise
    def forward(
        self,
        input_values: Tensor | None = None,
        *,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        sampling_rate: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode clips.

        Args:
            input_values: (batch, num_samples) in [-1, 1], padded at the end. Give either this or
                `input_features`.
            input_features: (batch, frames, bins), what `spectrogram` returns.
            attention_mask: (batch, num_samples), 1 where there is sound, 0 in the padding behind
                it; of samples also with `input_features`. None means that no clip is padded.
            sampling_rate: Of the waveform, in hertz, one for the batch; None means
                `config.sampling_rate`.
            **kwargs: `output_hidden_states`, `output_attentions` (eager attention only; a row per
                clip and sub-band, sub-bands running fastest), `return_dict`.

        Returns:
            `last_hidden_state` (batch, bands, 1 + patches, hidden), the class token first;
            `pooler_output` (batch, bands * hidden), the class tokens of all sub-bands; and, on
            request, `hidden_states`: the input of layer 1, then the output of each layer. What
            stands at masked patches is finite but means nothing: leave it out by
            `token_mask(attention_mask)`, or after `split` by `patch_mask(attention_mask)`.

        Raises:
            ValueError: Both inputs or neither came, a clip is shorter than one patch, the mask does
                not fit, or the sampling rate is no whole number from 100 on.
        """
        hidden_states, token_mask = self.layer_inputs(
            input_values,
            input_features=input_features,
            attention_mask=attention_mask,
            sampling_rate=sampling_rate,
        )
        for layer in self.layers:
            # By position: reentrant activation checkpointing sees no other gradients.
            hidden_states = layer(hidden_states, token_mask, **kwargs)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_states, pooler_output=self.split(hidden_states)[0].flatten(1)
        )

    def layer_inputs(
        self,
        input_values: Tensor | None = None,
        *,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        sampling_rate: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return what the first layer takes: hidden states and token mask.

        The arguments are those of `forward`.
        """
        rate = self._rate(sampling_rate)
        check_one_input(type(self).__name__, input_values, input_features)
        if input_values is not None:
            features = self.spectrogram(input_values, attention_mask, rate)
        elif input_features is not None:
            self._check_features(input_features, attention_mask, rate)
            features = self._heard(input_features, attention_mask, rate)
        token_mask = None
        if attention_mask is not None and self.config.target_length is None:
            token_mask = self.token_mask(attention_mask, rate)
        return self.embed_patches(features, token_mask), token_mask

    def spectrogram(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        sampling_rate: int | None = None,
    ) -> Tensor:
        """Return the normalised log-magnitude spectrogram, (batch, frames, bins) float32.

        It has `max_frames` frames at most, `target_length` if that is set, and `band_width` bins at
        least. All that is no clip's own is zero.

        Args:
            input_values: (batch, num_samples) in [-1, 1], padded at the end.
            attention_mask: (batch, num_samples), 1 where there is sound; None: everywhere.
            sampling_rate: Of the waveform, in hertz; None means `config.sampling_rate`.
        """
        rate = self._rate(sampling_rate)
        check_waveform(input_values)
        num_samples = input_values.shape[1]
        check_num_samples(num_samples, needed=self._num_samples_needed(rate), sampling_rate=rate)
        lengths = None
        if attention_mask is not None:
            # Not num_samples.__eq__, which torch.compile does not follow at varying lengths.
            self._check_mask(attention_mask, input_values, rate, lambda n: n == num_samples)
            lengths = attention_mask.sum(dim=1, dtype=torch.long)
        log_magnitude = self.log_stft(input_values, rate, lengths)
        normalised = (log_magnitude - self.config.spectrogram_mean) / (
            2 * self.config.spectrogram_std
        )
        missing = max(0, self.config.band_width - normalised.shape[2])
        return self._heard(F.pad(normalised, (0, missing)), attention_mask, rate)

    def embed_patches(self, features: Tensor, token_mask: Tensor | None = None) -> Tensor:
        """Return the input of the first layer, (batch, bands, 1 + patches, hidden).

        Args:
            features: (batch, frames, bins), normalised.
            token_mask: (batch, 1 + patches) bool, False at patches of padding; None: all are sound.
        """
        width = self.config.band_width
        bands = features.unfold(2, width, width).transpose(1, 2)  # (B, bands, T, band_width)
        embedded: Tensor = self.embedding(bands, token_mask)
        return embedded

    def split(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Return a layer's class tokens and patches: (batch, bands, hidden), (batch, N, hidden).

        The N = time * band patches are ordered by time, then by band, low frequencies first, as
        `patch_grid` and `patch_mask` count them.

        Args:
            hidden_states: (batch, bands, 1 + patches, hidden), of any layer.
        """
        columns = self.config.band_width // self.config.patch_size
        class_tokens, patches = hidden_states[:, :, 0], hidden_states[:, :, 1:]
        if self.config.flatten == "time":
            grid = patches.unflatten(2, (columns, -1)).transpose(2, 3)
        else:
            grid = patches.unflatten(2, (-1, columns))  # (B, bands, time, columns, hidden)
        return class_tokens, grid.transpose(1, 2).flatten(1, 3)

    @property
    def num_class_tokens(self) -> int:
        """Class tokens at `config.sampling_rate`, one per sub-band."""
        return self.num_bands()

    @property
    def num_samples_per_patch(self) -> int:
        """Samples of the shortest clip that can be encoded, at `config.sampling_rate`.

        One patch long; with `target_length`, one frame.
        """
        return self._num_samples_needed(self.config.sampling_rate)

    def num_bands(self, sampling_rate: int | None = None) -> int:
        """Return how many sub-bands there are at a sampling rate, `config`'s if None."""
        return max(1, self.log_stft.num_bins(self._rate(sampling_rate)) // self.config.band_width)

    def patch_grid(self, num_samples: int, sampling_rate: int | None = None) -> tuple[int, int]:
        """Return how many patches clips of `num_samples` give, (time, band), over all sub-bands."""
        rate = self._rate(sampling_rate)
        columns = self.config.band_width // self.config.patch_size
        frames = self.log_stft.num_frames(num_samples, rate)
        return self._num_patches(frames), self.num_bands(rate) * columns

    def patch_mask(self, attention_mask: Tensor, sampling_rate: int | None = None) -> Tensor:
        """Return which patches consist of sound alone, (batch, time * band) bool, time-major.

        With `target_length`, all count.

        Args:
            attention_mask: (batch, num_samples), 1 where there is sound, 0 in the padding at the
                end.
            sampling_rate: Of the waveform, in hertz; None means `config.sampling_rate`.
        """
        rate = self._rate(sampling_rate)
        _, band = self.patch_grid(attention_mask.shape[1], rate)
        return self._time_mask(attention_mask, rate).repeat_interleave(band, dim=1)

    def token_mask(self, attention_mask: Tensor, sampling_rate: int | None = None) -> Tensor:
        """Return which tokens of a sub-band count, (batch, 1 + patches) bool, as its layers order.

        The arguments are those of `patch_mask`.
        """
        mask = self._time_mask(attention_mask, self._rate(sampling_rate))
        columns = self.config.band_width // self.config.patch_size
        if self.config.flatten == "time":
            mask = mask.repeat(1, columns)
        else:
            mask = mask.repeat_interleave(columns, dim=1)
        return F.pad(mask, (1, 0), value=True)

    def _rate(self, sampling_rate: int | None) -> int:
        return self.config.sampling_rate if sampling_rate is None else sampling_rate

    def _num_patches(self, num_frames: int) -> int:
        """Return how many patches clips of `num_frames` give along time."""
        heard = min(num_frames, self.config.max_frames)
        if num_frames and self.config.target_length is not None:
            heard = self.config.target_length
        return heard // self.config.patch_size

    def _num_samples_needed(self, rate: int) -> int:
        frames = self.config.patch_size if self.config.target_length is None else 1
        return self.log_stft.num_samples(frames, rate)

    def _time_mask(self, attention_mask: Tensor, rate: int) -> Tensor:
        """Return which patches along time count, (batch, time) bool."""
        time, _ = self.patch_grid(attention_mask.shape[1], rate)
        lengths = attention_mask.sum(dim=1, dtype=torch.long)
        if self.config.target_length is not None:
            return lengths.new_ones((len(lengths), time), dtype=torch.bool)
        hop = self.config.patch_size * self.log_stft.hop_length(rate)
        ends = self._num_samples_needed(rate) + hop * torch.arange(time, device=lengths.device)
        return lengths[:, None] >= ends

    def _heard(self, features: Tensor, attention_mask: Tensor | None, rate: int) -> Tensor:
        """Return what the encoder hears: zeros behind a clip, cut or padded to the frames due."""
        if attention_mask is not None:
            lengths = attention_mask.sum(dim=1, dtype=torch.long)[:, None]
            frame = torch.arange(features.shape[1], device=features.device)
            ends = self.log_stft.num_samples(1, rate) + frame * self.log_stft.hop_length(rate)
            features = features.masked_fill((lengths < ends)[..., None], 0.0)
        due = self.config.target_length
        features = features[:, : due or self.config.max_frames]
        if due is None:
            return features
        return F.pad(features, (0, 0, 0, due - features.shape[1]))

    def _check_features(
        self, input_features: Tensor, attention_mask: Tensor | None, rate: int
    ) -> None:
        bins = max(self.log_stft.num_bins(rate), self.config.band_width)
        if input_features.ndim != 3 or input_features.shape[2] != bins:
            raise ValueError(
                f"input_features have the shape {tuple(input_features.shape)}, expected "
                f"(batch, frames, {bins}) at {rate} Hz. Take them from spectrogram(), and give the "
                "sampling_rate of their waveform."
            )
        frames = input_features.shape[1]
        if not self._num_patches(frames):
            raise ValueError(
                f"input_features have {frames} frames; one patch takes {self.config.patch_size}. "
                "Leave the clip out, or pad it with zeros."
            )
        if attention_mask is None:
            return
        due = self.config.target_length
        longest = due or self.config.max_frames

        def fits(num_samples: int) -> bool:
            heard = min(self.log_stft.num_frames(num_samples, rate), longest)
            return min(frames, longest) in (heard, due)  # due: spectrogram() padded them

        self._check_mask(attention_mask, input_features, rate, fits)

    def _check_mask(
        self, mask: Tensor, clips: Tensor, rate: int, fits: Callable[[int], bool]
    ) -> None:
        check_attention_mask(
            mask, clips, fits=fits, needed=self._num_samples_needed(rate), sampling_rate=rate
        )


FisherModel.register_for_auto_class("AutoModel")

__all__ = ["FisherModel", "FisherPreTrainedModel"]
