"""BEATs (Chen et al., 2022), a Transformer over 16 x 16 patches of a log-mel spectrogram."""

import math
from collections.abc import Callable
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import TransformersKwargs, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .attention import eager_attention_forward
from .configuration_asd import BeatsConfig
from .encoder_classifier import EncoderForAudioClassification
from .encoder_inputs import (
    check_attention_mask,
    check_num_samples,
    check_one_input,
    check_spectrogram,
    check_waveform,
)
from .encoder_layer import EncoderLayer
from .spectrogram import KaldiLogMel


class XavierLinear(nn.Linear):
    """A linear map that starts by Xavier's rule, times a gain.

    A class of its own, because transformers shows `_init_weights` no module of others' code that
    has no parameters itself, such as a layer.

    Args:
        in_features: As in `nn.Linear`.
        out_features: As there.
        gain: Of the first weights.
    """

    def __init__(self, in_features: int, out_features: int, *, gain: float = 1.0) -> None:
        super().__init__(in_features, out_features)
        self.gain = gain


def deep_norm_gain(config: BeatsConfig) -> float:
    """Return beta of deep-norm for an encoder (Wang et al., 2022, Fig. 2)."""
    return float((8 * config.num_hidden_layers) ** -0.25) if config.deep_norm else 1.0


class BeatsPatchEmbedding(nn.Module):
    """Patches of the spectrogram, each projected to `hidden_size` on its own."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(
            1,
            config.patch_embedding_size,
            kernel_size=config.patch_size,
            stride=config.patch_size,
            bias=config.conv_bias,
        )
        self.norm = nn.LayerNorm(config.patch_embedding_size, eps=config.layer_norm_eps)
        self.projection = XavierLinear(config.patch_embedding_size, config.hidden_size)

    def forward(self, features: Tensor) -> Tensor:
        """Turn (batch, frames, mel bins) into (batch, time * band, hidden), band running fastest.

        A last patch that is not full is left out.
        """
        patches = self.convolution(features.to(self.convolution.weight.dtype)[:, None])
        embedded: Tensor = self.projection(self.norm(patches.flatten(2).transpose(1, 2)))
        return embedded


class BeatsConvolutionalPosition(nn.Module):
    """Position embedding by a grouped convolution along the patches, added to them.

    Its weight is `magnitude * direction / ||direction||`, the norm taken per tap (weight
    normalisation, Salimans and Kingma, 2016, over all dimensions but the last).
    """

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        taps, groups = config.conv_position_kernel, config.conv_position_groups
        self.groups = groups
        self.magnitude = nn.Parameter(torch.empty(1, 1, taps))
        self.direction = nn.Parameter(
            torch.empty(config.hidden_size, config.hidden_size // groups, taps)
        )
        self.bias = nn.Parameter(torch.empty(config.hidden_size))

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return (batch, patches, hidden) for the same."""
        taps = self.direction.shape[-1]
        # Padded by half the kernel on both sides, an even kernel gives one output too many.
        position = F.conv1d(
            hidden_states.transpose(1, 2),
            self.weight(),
            self.bias,
            padding=taps // 2,
            groups=self.groups,
        )[..., : hidden_states.shape[1]]
        return hidden_states + F.gelu(position).transpose(1, 2)

    def weight(self) -> Tensor:
        """Return the kernel, (hidden, hidden / groups, taps)."""
        # The sum of many squares: in float32 at least. vector_norm is several times slower here.
        direction = self.direction.to(torch.promote_types(self.direction.dtype, torch.float32))
        norm = direction.square().sum(dim=(0, 1), keepdim=True).sqrt()
        weight: Tensor = direction * (self.magnitude / norm)
        return weight.to(self.direction.dtype)


class BeatsAttention(nn.Module):
    """Self-attention with a relative position bias that every head and query gates (Eq. 3-4)."""

    is_causal = False

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.config = config
        self.head_size = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_size**-0.5
        gain = deep_norm_gain(config)
        self.q_proj = XavierLinear(config.hidden_size, config.hidden_size)
        self.k_proj = XavierLinear(config.hidden_size, config.hidden_size)
        self.v_proj = XavierLinear(config.hidden_size, config.hidden_size, gain=gain)
        self.out_proj = XavierLinear(config.hidden_size, config.hidden_size, gain=gain)
        if config.gated_position_bias:
            self.gate = nn.Linear(self.head_size, 8)
            self.gate_scale = nn.Parameter(torch.empty(config.num_attention_heads, 1, 1))

    def forward(
        self,
        hidden_states: Tensor,
        patch_mask: Tensor | None,
        position_bias: Tensor,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[Tensor, Tensor | None]:
        """Return the context (batch, patches, hidden) and, where eager, the weights.

        Args:
            hidden_states: (batch, patches, hidden).
            patch_mask: (batch, patches) bool, False where nothing may be looked at.
            position_bias: (heads, patches, patches), query by key.
            **kwargs: To the attention function.
        """
        shape = (*hidden_states.shape[:-1], -1, self.head_size)
        query, key, value = (
            projection(hidden_states).view(shape).transpose(1, 2)  # (B, heads, N, head_size)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attend: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        context, weights = attend(
            self,
            query,
            key,
            value,
            self.additive_mask(query, patch_mask, position_bias),
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.out_proj(context.flatten(2)), weights

    def additive_mask(
        self, query: Tensor, patch_mask: Tensor | None, position_bias: Tensor
    ) -> Tensor:
        """Return what is added to the attention logits, (batch, heads, patches, patches)."""
        dtype = position_bias.dtype
        if self.config.gated_position_bias:
            # The query is not scaled yet. Two sums of four outputs each: (B, heads, N, 2).
            gates = self.gate(query).to(dtype).unflatten(-1, (2, 4)).sum(dim=-1).sigmoid()
            update, reset = gates.chunk(2, dim=-1)  # (B, heads, N, 1)
            mask = (update * (reset * self.gate_scale - 1.0) + 2.0) * position_bias
        else:
            mask = position_bias.expand(query.shape[0], -1, -1, -1)
        if patch_mask is not None:
            # Not -inf: a clip without a single patch would come out as NaN.
            lowest = torch.finfo(query.dtype).min
            mask = mask.masked_fill(~patch_mask[:, None, None], lowest)
        additive: Tensor = mask.to(query.dtype)
        return additive


class BeatsLayer(EncoderLayer):
    """Post-norm Transformer layer with residuals scaled by deep-norm (Wang et al., 2022).

    Besides the hidden states and the patch mask, it takes the position bias.
    """

    def __init__(self, config: BeatsConfig) -> None:
        alpha = (2 * config.num_hidden_layers) ** 0.25 if config.deep_norm else 1.0
        super().__init__(config, BeatsAttention(config), residual_scale=alpha)
        gain = deep_norm_gain(config)
        self.fc1 = XavierLinear(config.hidden_size, config.intermediate_size, gain=gain)
        self.fc2 = XavierLinear(config.intermediate_size, config.hidden_size, gain=gain)


class BeatsPreTrainedModel(PreTrainedModel):
    """What the BEATs models share: names, capabilities, initial weights."""

    config_class = BeatsConfig
    config: BeatsConfig
    base_model_prefix = "beats"
    main_input_name = "input_values"
    input_modalities = ["audio"]  # noqa: RUF012 an instance attribute above
    supports_gradient_checkpointing = True
    _no_split_modules = ["BeatsLayer", "BeatsConvolutionalPosition"]  # noqa: RUF012 likewise
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": BeatsLayer, "attentions": BeatsAttention}  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw the weights that deep-norm prescribes (Wang et al., 2022, Fig. 2).

        Xavier, whose size follows the layer's width, with gain beta on the value, output and
        feed-forward maps: a model of any size trains from scratch. The convolution starts as torch
        has it, which the authors leave.
        """
        super()._init_weights(module)
        if isinstance(module, XavierLinear):
            init.xavier_normal_(module.weight, gain=module.gain)
        elif isinstance(module, nn.Conv2d):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
        elif isinstance(module, BeatsConvolutionalPosition):
            hidden_size, _, taps = module.direction.shape
            init.normal_(module.direction, std=2 / math.sqrt(taps * hidden_size))
            norm = torch.linalg.vector_norm(module.direction, dim=(0, 1), keepdim=True)
            init.copy_(module.magnitude, norm)
            init.zeros_(module.bias)
        elif isinstance(module, BeatsAttention) and self.config.gated_position_bias:
            init.ones_(module.gate_scale)


class BeatsModel(BeatsPreTrainedModel):
    """The BEATs encoder: waveform in, one vector per patch and layer out.

    A patch covers 16 frames (160 ms) by 16 mel bins. Patches are ordered by time, then by band:
    patch t * 8 + b. A clip's patches come out the same alone, in a batch and beside longer clips.

    To step through the layers by hand:

        features = model.spectrogram(input_values)
        patch_mask = model.patch_mask(attention_mask)
        hidden_states = model.embed_patches(features, patch_mask)
        position_bias = model.position_bias(hidden_states.shape[1])
        for layer in model.layers:
            hidden_states = layer(hidden_states, patch_mask, position_bias)

    For LoRA: `target_modules=["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]`.

    Args:
        config: Of the encoder.
    """

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__(config)
        self.log_mel = KaldiLogMel(
            sampling_rate=config.sampling_rate,
            num_mel_bins=config.num_mel_bins,
            window="povey",
            scale=2.0**15,
        )
        self.patch_embedding = BeatsPatchEmbedding(config)
        self.input_dropout = nn.Dropout(config.input_dropout)
        self.position = BeatsConvolutionalPosition(config)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.relative_bias = nn.Embedding(config.num_buckets, config.num_attention_heads)
        self.layers = nn.ModuleList(BeatsLayer(config) for _ in range(config.num_hidden_layers))
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
            `last_hidden_state` (batch, patches, hidden) and, on request, `hidden_states`: the input
            of layer 1, then the output of each layer. What stands at masked patches is finite but
            means nothing: leave it out by `patch_mask(attention_mask)`.

        Raises:
            ValueError: Both inputs or neither came, a clip is shorter than one patch, or the mask
                does not fit.
        """
        hidden_states, patch_mask, position_bias = self.layer_inputs(
            input_values, input_features=input_features, attention_mask=attention_mask
        )
        for layer in self.layers:
            # By position: reentrant activation checkpointing sees no other gradients.
            hidden_states = layer(hidden_states, patch_mask, position_bias, **kwargs)
        return BaseModelOutput(last_hidden_state=hidden_states)

    def layer_inputs(
        self,
        input_values: Tensor | None = None,
        *,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return what the first layer takes: hidden states, patch mask, position bias.

        The arguments are those of `forward`.
        """
        features = self._features(input_values, input_features)
        patch_mask = None
        if attention_mask is not None:
            self._check_attention_mask(attention_mask, features, input_values)
            patch_mask = self.patch_mask(attention_mask)
        hidden_states = self.embed_patches(features, patch_mask)
        return hidden_states, patch_mask, self.position_bias(hidden_states.shape[1])

    def spectrogram(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,  # noqa: ARG002  as the other encoders take it
    ) -> Tensor:
        """Return the normalised log-mel spectrogram, (batch, frames, mel bins) float32.

        Args:
            input_values: (batch, num_samples) in [-1, 1] at `config.sampling_rate`.
            attention_mask: Of no account here: no frame depends on where the padding begins.
        """
        check_waveform(input_values)
        check_num_samples(
            input_values.shape[1],
            needed=self.num_samples_per_patch,
            sampling_rate=self.config.sampling_rate,
        )
        log_mel = self.log_mel(input_values)
        normalised: Tensor = log_mel - self.config.spectrogram_mean
        return normalised / (2 * self.config.spectrogram_std)

    def embed_patches(self, features: Tensor, patch_mask: Tensor | None = None) -> Tensor:
        """Return the input of the first layer, (batch, patches, hidden).

        Args:
            features: (batch, frames, mel bins), normalised.
            patch_mask: (batch, patches) bool, False at patches of padding; None: all are sound.
        """
        hidden_states = self.input_dropout(self.patch_embedding(features))
        if patch_mask is not None:
            # So the convolution along the patches sees behind a clip's end what it sees behind a
            # batch's end: zeros.
            hidden_states = hidden_states.masked_fill(~patch_mask[..., None], 0.0)
        embedded: Tensor = self.dropout(self.norm(self.position(hidden_states)))
        return embedded

    def position_bias(self, num_patches: int) -> Tensor:
        """Return the bias of all layers before its gate, (heads, num_patches, num_patches).

        It depends on key minus query, counted in patches of the flattened sequence, so one row of
        2 * num_patches - 1 distances holds it all.
        """
        device = self.relative_bias.weight.device
        distance = torch.arange(1 - num_patches, num_patches, device=device)
        buckets = relative_position_bucket(
            distance, num_buckets=self.config.num_buckets, max_distance=self.config.max_distance
        )
        by_distance: Tensor = self.relative_bias(buckets).T  # (heads, 2N - 1), from 1 - N to N - 1
        # Row r of the windows begins at distance r - (N - 1), that is query N - 1 - r.
        return by_distance.unfold(1, num_patches, 1).flip(1)

    @property
    def num_samples_per_patch(self) -> int:
        """Samples of the shortest clip that can be encoded, one patch long."""
        return self.log_mel.num_samples(self.config.patch_size)

    def patch_grid(self, num_samples: int) -> tuple[int, int]:
        """Return how many patches clips of `num_samples` give, (time, band)."""
        size = self.config.patch_size
        return self.log_mel.num_frames(num_samples) // size, self.config.num_mel_bins // size

    def patch_mask(self, attention_mask: Tensor) -> Tensor:
        """Return which patches consist of sound alone, (batch, patches) bool.

        Args:
            attention_mask: (batch, num_samples), 1 where there is sound, 0 in the padding at the
                end.
        """
        time, band = self.patch_grid(attention_mask.shape[1])
        lengths = attention_mask.sum(dim=1, dtype=torch.long)
        hop = self.config.patch_size * self.log_mel.hop_length
        ends = self.num_samples_per_patch + hop * torch.arange(time, device=lengths.device)
        return (lengths[:, None] >= ends).repeat_interleave(band, dim=1)

    @property
    def num_class_tokens(self) -> int:
        """0: BEATs has patches only."""
        return 0

    def split(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Return class tokens (batch, 0, hidden) and patches (batch, patches, hidden).

        Args:
            hidden_states: (batch, patches, hidden), any of those that `forward` returns.
        """
        return hidden_states[:, :0], hidden_states

    def _features(self, input_values: Tensor | None, input_features: Tensor | None) -> Tensor:
        """Return the one input that was given as a spectrogram, or raise ValueError."""
        check_one_input(type(self).__name__, input_values, input_features)
        if input_values is not None:
            return self.spectrogram(input_values)
        assert input_features is not None  # checked above
        check_spectrogram(input_features, self.config.num_mel_bins)
        if input_features.shape[1] < self.config.patch_size:
            raise ValueError(
                f"input_features have {input_features.shape[1]} frames; one patch takes "
                f"{self.config.patch_size}. Leave the clip out, or pad it with zeros."
            )
        return input_features

    def _check_attention_mask(
        self, attention_mask: Tensor, features: Tensor, input_values: Tensor | None
    ) -> None:
        """Refuse a mask of another shape, with holes, or of a clip shorter than one patch."""
        time = features.shape[1] // self.config.patch_size
        check_attention_mask(
            attention_mask,
            features if input_values is None else input_values,
            fits=lambda num_samples: (
                self.patch_grid(num_samples)[0] == time
                and (input_values is None or num_samples == input_values.shape[1])
            ),
            needed=self.num_samples_per_patch,
            sampling_rate=self.config.sampling_rate,
        )


class BeatsForAudioClassification(BeatsPreTrainedModel, EncoderForAudioClassification):
    """BEATs with the predictor that fine-tuning added: a class logit per patch, then the mean.

    Args:
        config: Of the encoder; `num_labels` or `id2label` says which classes.
    """

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__(config)
        self.beats = BeatsModel(config)
        num_labels: Any = config.num_labels  # its type leaves None open
        self.predictor = nn.Linear(config.hidden_size, num_labels)
        self.post_init()

    def classify(self, hidden_states: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Return the mean of the patches' logits, (batch, num_labels); padding does not count."""
        logits: Tensor = self.predictor(hidden_states)  # (B, N, num_labels)
        if attention_mask is None:
            return logits.mean(dim=1)
        mask = self.beats.patch_mask(attention_mask)[..., None]
        return logits.where(mask, 0.0).sum(dim=1) / mask.sum(dim=1)


def relative_position_bucket(distance: Tensor, *, num_buckets: int, max_distance: int) -> Tensor:
    """Return the bucket of each distance, int64 (after Raffel et al., 2020).

    Half the buckets are for keys after the query. In each half, half of the buckets hold one
    distance each, the rest grow logarithmically up to `max_distance`; the last takes all beyond.

    Args:
        distance: int64, key minus query.
        num_buckets: Of both directions.
        max_distance: From here on, all distances share a bucket.
    """
    half = num_buckets // 2
    exact = half // 2
    magnitude = distance.abs()
    # The Metal backend knows no float64.
    precise = torch.float32 if distance.device.type == "mps" else torch.float64
    octaves = (magnitude.clamp_min(exact).to(precise) / exact).log()
    coarse = exact + (octaves / math.log(max_distance / exact) * (half - exact)).long()
    bucket = magnitude.where(magnitude < exact, coarse.clamp_max(half - 1))
    return bucket + half * (distance > 0)


BeatsModel.register_for_auto_class("AutoModel")
BeatsForAudioClassification.register_for_auto_class("AutoModelForAudioClassification")

__all__ = [
    "BeatsForAudioClassification",
    "BeatsModel",
    "BeatsPreTrainedModel",
]
