"""The smallest encoders that have every part of a full one."""

from typing import Any

_TINY: list[dict[str, Any]] = [
    {
        "model_type": "nearfar_beats",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "patch_embedding_size": 16,
        "conv_position_kernel": 8,
        "conv_position_groups": 4,
        "num_buckets": 32,
        "max_distance": 64,
    },
    {
        "model_type": "nearfar_eat",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_length": 16,
    },
    {
        "model_type": "nearfar_fisher",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_length": 32,
        "max_freq": 8,
    },
]
TINY_ENCODERS = {config["model_type"]: config for config in _TINY}
TINY_ENCODERS["nearfar_noise_aware"] = {
    "model_type": "nearfar_noise_aware",
    "encoder_config": TINY_ENCODERS["nearfar_eat"],
}
