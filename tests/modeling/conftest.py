import pytest
import torch
from torch import Tensor

from modeling import AsdConfig, AsdForProxyClassification


@pytest.fixture
def tiny_config():
    """Return a function that makes a small AsdConfig; keyword arguments override its fields."""

    def make(*, encoder: dict | None = None, **options) -> AsdConfig:
        encoder_config = {
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
        return AsdConfig(
            encoder_config=encoder_config | (encoder or {}), **({"num_labels": 5} | options)
        )

    return make


@pytest.fixture
def tiny_model(tiny_config):
    """Return a function that makes a small AsdForProxyClassification in evaluation mode, seeded."""

    def make(**options) -> AsdForProxyClassification:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return AsdForProxyClassification(tiny_config(**options)).eval()

    return make


@pytest.fixture
def pairs():
    """Return three near and far clips of different lengths, each (num_samples,)."""
    generator = torch.Generator().manual_seed(0)

    def pair(num_samples: int) -> tuple[Tensor, Tensor]:
        machine, noise = 0.1 * torch.randn(2, num_samples, generator=generator)
        return machine + 0.5 * noise, 0.3 * machine + noise

    return [pair(n) for n in (8_000, 5_001, 6_600)]
