"""Attention written out, for what transformers' fused implementations cannot return."""

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


__all__ = ["eager_attention_forward"]
