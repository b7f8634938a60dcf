"""The Transformer layer that all encoders share; each brings an attention of its own."""

from typing import Any, Protocol, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.generic import TransformersKwargs


class LayerConfig(Protocol):
    """What a layer and its attention read of an encoder's configuration."""

    hidden_size: int
    num_attention_heads: int
    intermediate_size: int
    layer_norm_eps: float
    hidden_dropout: float
    attention_dropout: float
    activation_dropout: float
    layerdrop: float
    _attn_implementation: Any  # a property of transformers, without a type


class EncoderLayer(GradientCheckpointingLayer):
    """Post-norm Transformer layer: attention, then two linear maps, a residual beside each.

    For inference on a CPU it takes one clip after the other: the activations of one stay in the
    caches, where those of a batch would travel to memory and back.

    Args:
        config: Of the encoder.
        attention: Called with hidden states (clips, tokens, hidden), token mask and what else
            `forward` is given; returns the context, and weights or None.
        residual_scale: What is carried past is multiplied by this.
    """

    def __init__(
        self, config: LayerConfig, attention: nn.Module, *, residual_scale: float = 1.0
    ) -> None:
        super().__init__()
        self.config = config
        self.residual_scale = residual_scale
        self.layerdrop = config.layerdrop
        self.attention = attention
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.output_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.activation_dropout = nn.Dropout(config.activation_dropout)

    def forward(
        self,
        hidden_states: Tensor,
        token_mask: Tensor | None = None,
        *shared: Tensor,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Tensor:
        """Return the next hidden states, same shape.

        Args:
            hidden_states: (batch, tokens, hidden).
            token_mask: (batch, tokens) bool, False where nothing may be looked at; None: nowhere.
            *shared: To the attention, the same for all clips.
            **kwargs: To the attention function.
        """
        if not self.takes_clips_singly(hidden_states):
            transformed = self.transform(hidden_states, token_mask, *shared, **kwargs)
        else:
            clips = hidden_states.split(1)
            masks = [None] * len(clips) if token_mask is None else token_mask.split(1)
            transformed = torch.empty_like(hidden_states)
            for clip, mask, out in zip(clips, masks, transformed.split(1), strict=True):
                whole = mask is None or bool(mask.all())
                out.copy_(self.transform(clip, None if whole else mask, *shared, **kwargs))
        if self.training and self.layerdrop > 0:
            # Computed and then dropped: distributed training needs a gradient for each parameter.
            keep = torch.rand((), device=hidden_states.device) >= self.layerdrop
            transformed = torch.where(keep, transformed, hidden_states)
        return transformed

    def takes_clips_singly(self, hidden_states: Tensor) -> bool:
        """Return whether clips are taken one by one; results are the same within rounding."""
        return not (
            hidden_states.device.type != "cpu"
            or self.training  # dropout would draw differently
            or torch.is_grad_enabled()  # what is kept for the backward pass leaves the caches
            or torch.compiler.is_compiling()
            or self.config._attn_implementation == "eager"  # may record its weights, once
        )

    def transform(
        self,
        hidden_states: Tensor,
        token_mask: Tensor | None,
        *shared: Tensor,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Tensor:
        """Return the next hidden states; the arguments are those of `forward`."""
        attended, _ = self.attention(hidden_states, token_mask, *shared, **kwargs)
        hidden_states = self.attention_norm(
            torch.add(self.dropout(attended), hidden_states, alpha=self.residual_scale)
        )
        inner = self.activation_dropout(F.gelu(self.fc1(hidden_states)))
        transformed: Tensor = self.output_norm(
            torch.add(self.dropout(self.fc2(inner)), hidden_states, alpha=self.residual_scale)
        )
        return transformed


__all__ = ["EncoderLayer", "LayerConfig"]
