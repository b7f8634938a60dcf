"""The smallest encoder that has every part of a BEATs; shared by all tests."""

TINY_ENCODER = {
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
}
