"""The encoders once more, computed as their authors' code does: what ours are timed against.

Each function takes one of our models for its weights and does the authors' steps in plain float32
operations: features clip by clip; for BEATs and EAT the attention weights of all heads and clips
as one tensor, for FISHER fused attention, as theirs; for BEATs a position bias that is copied for
every clip and multiplied by its gate in every layer. No dropout, no padding.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from modeling import BeatsModel, EatModel, FisherModel
from modeling.modeling_beats import BeatsAttention, relative_position_bucket
from modeling.modeling_eat import EatAttention, EatLayer


def plain_beats(model: BeatsModel, waveforms: Tensor) -> Tensor:
    """Return BEATs' last hidden state (batch, patches, hidden) of (batch, num_samples)."""
    x = model.embed_patches(features_clip_by_clip(model, waveforms))
    clips, patches, _ = x.shape
    position = torch.arange(patches, device=x.device)
    bucket = relative_position_bucket(
        position[None] - position[:, None],
        num_buckets=model.config.num_buckets,
        max_distance=model.config.max_distance,
    )
    bias = model.relative_bias(bucket).permute(2, 0, 1).repeat(clips, 1, 1)  # (B * heads, N, N)
    for layer in model.layers:
        attended = plain_beats_attention(layer.attention, x, bias)
        x = layer.attention_norm(layer.residual_scale * x + attended)
        x = layer.output_norm(layer.residual_scale * x + layer.fc2(F.gelu(layer.fc1(x))))
    return x


def plain_beats_attention(attention: BeatsAttention, x: Tensor, bias: Tensor) -> Tensor:
    """Attend as the authors do, the logits scaled down by 32 and up again."""
    clips, patches, _ = x.shape
    size = attention.head_size
    query, key, value = (
        split_heads(projection(x), size)  # (B * heads, N, size)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    logits = (query * (attention.scaling / 32)) @ key.transpose(1, 2)
    logits = (logits - logits.amax(dim=-1, keepdim=True)) * 32
    if attention.config.gated_position_bias:
        gates = attention.gate(query).unflatten(-1, (2, 4)).sum(dim=-1).sigmoid()
        update, reset = gates.chunk(2, dim=-1)  # (B * heads, N, 1)
        scale = attention.gate_scale.repeat(clips, 1, 1)
        bias = (update * (reset * scale - 1.0) + 2.0) * bias
    weights = (logits + bias).softmax(dim=-1)
    context = (weights @ value).unflatten(0, (clips, -1)).transpose(1, 2)
    return attention.out_proj(context.reshape(clips, patches, -1))


def plain_eat(model: EatModel, waveforms: Tensor) -> Tensor:
    """Return EAT's last hidden state (batch, 1 + patches, hidden) of (batch, num_samples)."""
    x = model.embed_patches(features_clip_by_clip(model, waveforms))
    for layer in model.layers:
        x = plain_eat_layer(layer, x, plain_eat_attention)
    return x


def plain_fisher(model: FisherModel, waveforms: Tensor) -> Tensor:
    """Return FISHER's last hidden state (batch, bands, 1 + patches, hidden)."""
    x = model.embed_patches(features_clip_by_clip(model, waveforms))
    clips = len(x)
    x = x.flatten(0, 1)  # the bands of all clips as one batch
    for layer in model.layers:
        x = plain_eat_layer(layer, x, fused_eat_attention)
    return x.unflatten(0, (clips, -1))


def plain_eat_layer(
    layer: EatLayer, x: Tensor, attend: Callable[[EatAttention, Tensor], Tensor]
) -> Tensor:
    """Return the next hidden state of an EAT or FISHER layer."""
    x = layer.attention_norm(x + attend(layer.attention, x))
    return layer.output_norm(x + layer.fc2(F.gelu(layer.fc1(x))))


def plain_eat_attention(attention: EatAttention, x: Tensor) -> Tensor:
    """Attend with the weights (batch, heads, tokens, tokens) written out."""
    heads = attention.qkv(x).unflatten(-1, (3, -1, attention.head_size))
    query, key, value = heads.permute(2, 0, 3, 1, 4)  # (B, heads, N, size) each
    weights = (query * attention.scaling @ key.transpose(-2, -1)).softmax(dim=-1)
    return attention.out_proj((weights @ value).transpose(1, 2).flatten(2))


def fused_eat_attention(attention: EatAttention, x: Tensor) -> Tensor:
    """Attend by torch's fused function."""
    heads = attention.qkv(x).unflatten(-1, (3, -1, attention.head_size))
    query, key, value = heads.permute(2, 0, 3, 1, 4)
    context = F.scaled_dot_product_attention(query, key, value)
    return attention.out_proj(context.transpose(1, 2).flatten(2))


def features_clip_by_clip(model: BeatsModel | EatModel | FisherModel, waveforms: Tensor) -> Tensor:
    """Return the spectrograms of (batch, num_samples), one clip at a time."""
    return torch.cat([model.spectrogram(waveform[None]) for waveform in waveforms])


def split_heads(x: Tensor, size: int) -> Tensor:
    """Turn (batch, tokens, hidden) into (batch * heads, tokens, size)."""
    return x.unflatten(-1, (-1, size)).transpose(1, 2).flatten(0, 1)
