"""Near looks at far after every block of an encoder: cross-attention around any of the three.

After the winner of DCASE 2026 Task 2 (MERL, TR2026-100). Near and far go through the same blocks.
After block l, with h of near and h' of far,

    h <- h + attention(LN h, LN h')     queries of near, keys and values of far
    h <- h + feed_forward(LN h)

Both additions start as zeros, so that the encoder starts as what it was.
"""

from collections.abc import Callable
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import TransformersKwargs, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .attention import additive_mask, eager_attention_forward
from .configuration_asd import NoiseAwareConfig
from .modeling_beats import BeatsModel
from .modeling_eat import EatModel
from .modeling_fisher import FisherModel

WrappedEncoder = BeatsModel | EatModel | FisherModel
# model_type of the encoder's config -> constructor
WRAPPED_ENCODERS: dict[str, Callable[[Any], WrappedEncoder]] = {
    "nearfar_beats": BeatsModel,
    "nearfar_eat": EatModel,
    "nearfar_fisher": FisherModel,
}


class FusionLinear(nn.Linear):
    """A linear map of a fusion, which starts by Xavier or as zero.

    A class of its own, because transformers shows `_init_weights` no module of others' code that
    has no parameters itself, such as a fusion.

    Args:
        in_features: As in `nn.Linear`.
        out_features: As there.
        zero: How it starts.
    """

    def __init__(self, in_features: int, out_features: int, *, zero: bool = False) -> None:
        super().__init__(in_features, out_features)
        self.zero = zero

    def start(self) -> None:
        """Draw the weights."""
        if self.zero:
            init.zeros_(self.weight)
        else:
            init.xavier_uniform_(self.weight)
        init.zeros_(self.bias)


class NearFarAttention(nn.Module):
    """Attention with the queries of near, the keys and values of far."""

    is_causal = False

    def __init__(self, config: NoiseAwareConfig) -> None:
        super().__init__()
        self.config = config
        size = config.hidden_size
        self.head_size = size // config.num_attention_heads
        self.scaling = self.head_size**-0.5
        self.q_proj = FusionLinear(size, size)
        self.k_proj = FusionLinear(size, size)
        self.v_proj = FusionLinear(size, size)
        self.out_proj = FusionLinear(size, size, zero=True)

    def forward(
        self,
        near: Tensor,
        far: Tensor,
        token_mask: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[Tensor, Tensor | None]:
        """Return the context (batch, tokens, hidden) and, where eager, the weights.

        Args:
            near: (batch, tokens, hidden).
            far: Same shape.
            token_mask: (batch, tokens) bool, False where far must not be looked at.
            **kwargs: To the attention function.
        """
        query, key, value = (
            projection(tokens).unflatten(-1, (-1, self.head_size)).transpose(1, 2)
            for projection, tokens in ((self.q_proj, near), (self.k_proj, far), (self.v_proj, far))
        )  # (B, heads, N, head_size)
        mask = None if token_mask is None else additive_mask(token_mask, query.dtype)
        attend: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        context, weights = attend(
            self, query, key, value, mask, dropout=0.0, scaling=self.scaling, **kwargs
        )
        return self.out_proj(context.flatten(2)), weights


class NearFarFusion(GradientCheckpointingLayer):
    """What near takes from far after one block; nothing, until it is trained."""

    def __init__(self, config: NoiseAwareConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.near_norm = nn.LayerNorm(size)
        self.far_norm = nn.LayerNorm(size)
        self.attention = NearFarAttention(config)
        self.inner_norm = nn.LayerNorm(size)
        self.fc1 = FusionLinear(size, config.feed_forward_factor * size)
        self.fc2 = FusionLinear(config.feed_forward_factor * size, size, zero=True)
        self.dropout = nn.Dropout(config.fusion_dropout)

    def forward(
        self,
        near: Tensor,
        far: Tensor,
        token_mask: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Tensor:
        """Return near's next hidden states.

        Args:
            near: (batch, tokens, hidden), or (batch, bands, tokens, hidden): then each band looks
                at the same band of far.
            far: Same shape.
            token_mask: (batch, tokens) bool, False where far must not be looked at; None: nowhere.
            **kwargs: To the attention function.
        """
        tokens, heard = near.flatten(0, -3), far.flatten(0, -3)  # (B * bands, N, D)
        if token_mask is not None:
            token_mask = token_mask.repeat_interleave(len(tokens) // len(near), dim=0)
        context, _ = self.attention(
            self.near_norm(tokens), self.far_norm(heard), token_mask, **kwargs
        )
        tokens = tokens + self.dropout(context)
        inner = self.fc2(F.gelu(self.fc1(self.inner_norm(tokens))))
        fused: Tensor = (tokens + self.dropout(inner)).view(near.shape)
        return fused


class NoiseAwareLayer(nn.Module):
    """A block of the encoder, for near and for far, and what near takes from far after it.

    Args:
        config: Of the noise-aware encoder.
        layer: The block; called with hidden states, token mask and what all blocks share.
    """

    def __init__(self, config: NoiseAwareConfig, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.fusion = NearFarFusion(config)

    def forward(
        self,
        near: Tensor,
        far: Tensor | None,
        has_far: Tensor | None,
        token_mask: Tensor | None,
        *shared: Tensor,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[Tensor, Tensor | None]:
        """Return the next hidden states of near and of far.

        Args:
            near: (batch, ..., tokens, hidden).
            far: Same shape; None: no clip has a far channel.
            has_far: (batch,) bool, which clips have one; the others stay as the block made them.
            token_mask: (batch, tokens) bool, False where nothing may be looked at; None: nowhere.
            *shared: To the block, the same for all clips.
            **kwargs: To the attention functions.
        """
        # Not near and far in one batch: so near comes out as without far, to the bit.
        near = self.layer(near, token_mask, *shared, **kwargs)
        if far is None or has_far is None:
            return near, None
        far = self.layer(far, token_mask, *shared, **kwargs)
        fused = self.fusion(near, far, token_mask, **kwargs)
        return torch.where(has_far.view(-1, *[1] * (near.ndim - 1)), fused, near), far


class NoiseAwarePreTrainedModel(PreTrainedModel):
    """What belongs to every noise-aware model: names, capabilities, initial weights."""

    config_class = NoiseAwareConfig
    config: NoiseAwareConfig
    base_model_prefix = "noise_aware"
    main_input_name = "input_values"
    input_modalities = ["audio"]  # noqa: RUF012 an instance attribute above
    supports_gradient_checkpointing = True
    _no_split_modules = ["NoiseAwareLayer"]  # noqa: RUF012 likewise
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {  # noqa: RUF012 likewise
        "hidden_states": NoiseAwareLayer,
        "attentions": NearFarAttention,
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw the weights of the encoder's blocks as the encoder does, and those beside them."""
        if isinstance(module, FusionLinear):
            module.start()
        elif isinstance(self, NoiseAwareModel):
            self.encoder._init_weights(module)
        else:
            super()._init_weights(module)


class NoiseAwareModel(NoiseAwarePreTrainedModel):
    """An encoder that hears two microphones: BEATs, EAT or FISHER with near <- far attention.

    Its tokens are those of near, ordered and masked as the encoder's own. It equals the encoder, to
    the bit, for clips without a far channel, and for all clips as long as its fusions have not been
    trained. A clip's tokens come out the same alone, in a batch and beside longer clips.

    A fusion has 10 hidden_size ** 2 weights, where a block has 12: with the far channel a clip
    takes some 2.8 times as long.

    Args:
        config: `config.encoder_config` describes the encoder.

    Attributes:
        encoder: The encoder, without its blocks.
        layers: Its blocks, each with a fusion.
    """

    def __init__(self, config: NoiseAwareConfig) -> None:
        super().__init__(config)
        encoder_config: Any = config.encoder_config  # of the class that its model_type names
        self.encoder = WRAPPED_ENCODERS[encoder_config.model_type](encoder_config)
        blocks = self.encoder.layers
        self.encoder.layers = nn.ModuleList()  # a module of two names could not be saved
        self.layers = nn.ModuleList(NoiseAwareLayer(config, block) for block in blocks)
        self.post_init()

    @merge_with_config_defaults  # type: ignore[untyped-decorator]  # transformers' own
    @capture_outputs  # type: ignore[untyped-decorator]  # likewise
    def forward(
        self,
        input_values: Tensor | None = None,
        far_values: Tensor | None = None,
        *,
        input_features: Tensor | None = None,
        far_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        has_far: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutput:
        """Encode clips.

        Args:
            input_values: Near, (batch, num_samples) in [-1, 1] at the encoder's sampling rate,
                padded at the end. Give either this or `input_features`.
            far_values: Far, same shape and clock; None, without `far_features`: no clip has it.
            input_features: Of near, what `spectrogram` returns.
            far_features: Of far, likewise.
            attention_mask: (batch, num_samples), 1 where there is sound, 0 in the padding behind
                it; of samples also with features. None means that no clip is padded.
            has_far: (batch,) bool, which clips have a far channel; None: all of a batch with one.
            **kwargs: `output_hidden_states`, `output_attentions` (near's on far, eager attention
                only), `return_dict`.

        Returns:
            As the encoder's `forward`: `last_hidden_state` of near and, on request,
            `hidden_states`.

        Raises:
            ValueError: As the encoder's, or near and far differ in shape.
        """
        near, token_mask, *shared = self.encoder.layer_inputs(
            input_values, input_features=input_features, attention_mask=attention_mask
        )
        far = None
        if far_values is not None or far_features is not None:
            far, *_ = self.encoder.layer_inputs(
                far_values, input_features=far_features, attention_mask=attention_mask
            )
            if far.shape != near.shape:
                raise ValueError(
                    f"near has {tuple(near.shape)} tokens, but far {tuple(far.shape)}. Both "
                    "microphones of a clip have one clock: cut and pad them together."
                )
            if has_far is None:
                has_far = near.new_ones(len(near), dtype=torch.bool)
        for layer in self.layers:
            # By position: reentrant activation checkpointing sees no other gradients.
            near, far = layer(near, far, has_far, token_mask, *shared, **kwargs)
        return BaseModelOutput(last_hidden_state=near)

    def load_encoder(self, encoder: nn.Module) -> None:
        """Take over the weights of an encoder; the fusions keep theirs.

        Args:
            encoder: Of the class and the sizes that `config.encoder_config` describes.

        Raises:
            ValueError: It lacks a weight, or has one too many.
        """
        state = {}
        for name, tensor in encoder.state_dict().items():
            part, _, rest = name.partition(".")
            index, _, of_block = rest.partition(".")
            blocks = part == "layers"
            state[f"layers.{index}.layer.{of_block}" if blocks else f"encoder.{name}"] = tensor
        missing, unexpected = self.load_state_dict(state, strict=False)
        missing = [name for name in missing if ".fusion." not in name]
        if missing or unexpected:
            raise ValueError(
                f"The encoder does not fit config.encoder_config: missing {missing}, unexpected "
                f"{unexpected}. Take its own: NoiseAwareConfig(encoder_config=encoder.config)."
            )

    def freeze_encoder(self) -> None:
        """Let the fusions train and nothing else. Freezing is for training only: see `AsdModel`."""
        self.requires_grad_(requires_grad=False)
        for layer in self.layers:
            layer.fusion.requires_grad_()

    # What others step through and pool by: the encoder's own.

    def spectrogram(self, input_values: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the normalised spectrogram of one channel, as the encoder does."""
        return self.encoder.spectrogram(input_values, attention_mask)

    def split(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Return class tokens and patches, as the encoder does."""
        return self.encoder.split(hidden_states)

    def patch_grid(self, num_samples: int) -> tuple[int, int]:
        """Return how many patches clips of `num_samples` give, (time, band)."""
        return self.encoder.patch_grid(num_samples)

    def patch_mask(self, attention_mask: Tensor) -> Tensor:
        """Return which patches count as sound, (batch, patches) bool."""
        return self.encoder.patch_mask(attention_mask)

    @property
    def num_class_tokens(self) -> int:
        """Class tokens of the encoder."""
        return self.encoder.num_class_tokens

    @property
    def num_samples_per_patch(self) -> int:
        """Samples of the shortest clip that can be encoded."""
        return self.encoder.num_samples_per_patch


NoiseAwareModel.register_for_auto_class("AutoModel")

__all__ = [
    "WRAPPED_ENCODERS",
    "FusionLinear",
    "NearFarAttention",
    "NearFarFusion",
    "NoiseAwareLayer",
    "NoiseAwareModel",
    "NoiseAwarePreTrainedModel",
    "WrappedEncoder",
]
