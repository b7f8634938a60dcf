"""Checkpoints in the layout of the BEATs authors, with random weights, of any size."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

BASE_CFG: dict[str, Any] = {
    "encoder_layers": 12,
    "encoder_embed_dim": 768,
    "encoder_ffn_embed_dim": 3072,
    "encoder_attention_heads": 12,
    "activation_fn": "gelu",
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "encoder_layerdrop": 0.05,
    "dropout_input": 0.0,
    "layer_norm_first": False,
    "conv_bias": False,
    "conv_pos": 128,
    "conv_pos_groups": 16,
    "relative_position_embedding": True,
    "num_buckets": 320,
    "max_distance": 800,
    "gru_rel_pos": True,
    "deep_norm": True,
    "input_patch_size": 16,
    "layer_wise_gradient_decay_ratio": 0.6,
    "embed_dim": 512,
    "finetuned_model": False,
}
TINY_SIZES = {
    "encoder_layers": 2,
    "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 64,
    "encoder_attention_heads": 2,
    "conv_pos": 8,
    "conv_pos_groups": 4,
    "num_buckets": 32,
    "max_distance": 64,
    "embed_dim": 16,
}


def beats_shapes(cfg: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the authors' key and shape of every tensor, the position bias once per layer."""
    size, inner = cfg["encoder_embed_dim"], cfg["encoder_ffn_embed_dim"]
    patch, embed = cfg["input_patch_size"], cfg["embed_dim"]
    heads, groups = cfg["encoder_attention_heads"], cfg["conv_pos_groups"]
    shapes: dict[str, tuple[int, ...]] = {
        "post_extract_proj.weight": (size, embed),
        "post_extract_proj.bias": (size,),
        "patch_embedding.weight": (embed, 1, patch, patch),
        "encoder.pos_conv.0.bias": (size,),
        "encoder.pos_conv.0.weight_g": (1, 1, cfg["conv_pos"]),
        "encoder.pos_conv.0.weight_v": (size, size // groups, cfg["conv_pos"]),
        "encoder.layer_norm.weight": (size,),
        "encoder.layer_norm.bias": (size,),
        "layer_norm.weight": (embed,),
        "layer_norm.bias": (embed,),
    }
    if cfg["conv_bias"]:
        shapes["patch_embedding.bias"] = (embed,)
    for layer in range(cfg["encoder_layers"]):
        prefix = f"encoder.layers.{layer}"
        attention = f"{prefix}.self_attn"
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            shapes[f"{attention}.{name}.weight"] = (size, size)
            shapes[f"{attention}.{name}.bias"] = (size,)
        shapes[f"{attention}.relative_attention_bias.weight"] = (cfg["num_buckets"], heads)
        if cfg["gru_rel_pos"]:
            shapes[f"{attention}.grep_linear.weight"] = (8, size // heads)
            shapes[f"{attention}.grep_linear.bias"] = (8,)
            shapes[f"{attention}.grep_a"] = (1, heads, 1, 1)
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            shapes[f"{prefix}.{name}.weight"] = (size,)
            shapes[f"{prefix}.{name}.bias"] = (size,)
        shapes[f"{prefix}.fc1.weight"] = (inner, size)
        shapes[f"{prefix}.fc1.bias"] = (inner,)
        shapes[f"{prefix}.fc2.weight"] = (size, inner)
        shapes[f"{prefix}.fc2.bias"] = (size,)
    if cfg["finetuned_model"]:
        shapes["predictor.weight"] = (cfg["predictor_class"], size)
        shapes["predictor.bias"] = (cfg["predictor_class"],)
    return shapes


def beats_checkpoint(
    *, base: bool = False, num_classes: int | None = None, seed: int = 0, **cfg: Any
) -> dict[str, Any]:
    """Return {"cfg", "model"[, "label_dict"]}: tiny or base, fine-tuned if there are classes.

    Weights have the size that a working network's have; norms are near 1, all else near 0.
    """
    full = BASE_CFG | ({} if base else TINY_SIZES) | cfg
    if num_classes is not None:
        full |= {"finetuned_model": True, "predictor_dropout": 0.0, "predictor_class": num_classes}
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}
    for key, shape in beats_shapes(full).items():
        noise = torch.randn(shape, generator=generator)
        if key.endswith(("norm.weight", "grep_a", "weight_g")):
            state[key] = 1 + 0.1 * noise
        elif len(shape) == 1:
            state[key] = 0.1 * noise
        elif key.endswith("relative_attention_bias.weight"):
            state[key] = noise
        else:
            state[key] = noise / noise[0].numel() ** 0.5
    # One parameter in the authors' model: the stored copies are equal, and share their memory.
    shared = "encoder.layers.{}.self_attn.relative_attention_bias.weight"
    for layer in range(1, full["encoder_layers"]):
        state[shared.format(layer)] = state[shared.format(0)]
    checkpoint = {"cfg": full, "model": state}
    if num_classes is not None:
        checkpoint["label_dict"] = {index: f"/m/{index:05d}" for index in range(num_classes)}
    return checkpoint


def write_beats_checkpoint(path: Path, **options: Any) -> Path:
    """Save what `beats_checkpoint` returns, as the authors do, and return the path."""
    torch.save(beats_checkpoint(**options), path)
    return path
