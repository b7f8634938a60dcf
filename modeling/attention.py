"""What the encoders' attentions share: a mask, and the plain operations, which return weights."""

from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils.generic import TransformersKwargs


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    **_: Unpack[TransformersKwargs],
) -> tuple[Tensor, Tensor]:
    """Attend in plain operations, the softmax in float32 at least; returns the weights, too."""
    logits = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        logits = logits + attention_mask
    precise = torch.promote_types(logits.dtype, torch.float32)
    weights = logits.softmax(dim=-1, dtype=precise).to(query.dtype)
    context = F.dropout(weights, dropout, module.training) @ value
    return context.transpose(1, 2).contiguous(), weights


def additive_mask(token_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what an attention adds to its logits, (batch, 1, 1, tokens): 0, or the lowest number.

    Args:
        token_mask: (batch, tokens) bool, False where nothing may be looked at.
        dtype: Of the logits.
    """
    # Not -inf: a row without a single token would come out as NaN.
    hidden = ~token_mask[:, None, None]
    mask = torch.zeros_like(hidden, dtype=dtype)
    return mask.masked_fill(hidden, torch.finfo(dtype).min)


__all__ = ["additive_mask", "eager_attention_forward"]
