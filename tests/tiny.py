"""The smallest encoders, by the names that tests use."""

from assembly.tiny_encoders import TINY_ENCODERS

TINY_ENCODER = TINY_ENCODERS["nearfar_beats"]
TINY_EAT = TINY_ENCODERS["nearfar_eat"]
TINY_FISHER = TINY_ENCODERS["nearfar_fisher"]
TINY_NOISE_AWARE = TINY_ENCODERS["nearfar_noise_aware"]
ENCODERS = {"beats": TINY_ENCODER, "eat": TINY_EAT, "fisher": TINY_FISHER}
