"""Encoders, small or with the authors' weights, and clips; for the tests of all encoders."""

import copy
import functools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from modeling import (
    BeatsConfig,
    BeatsForAudioClassification,
    BeatsModel,
    EatConfig,
    EatForAudioClassification,
    EatModel,
    FisherConfig,
    FisherModel,
)
from modeling.convert_original import load_original
from modeling.encoder_classifier import EncoderForAudioClassification
from modeling.modeling_fisher import FisherPreTrainedModel
from tests.tiny import ENCODERS

FIXTURES = Path(__file__).parents[1] / "fixtures"
# The encoder alone, and with a head.
CHECKPOINTS = {
    "beats": ("pretrained.pt", "finetuned.pt"),
    "eat": ("pretrained_fairseq.pt", "finetuned_fairseq.pt"),
    "fisher": ("fisher.pt",),
}
ATTENTION = pytest.mark.parametrize("attention", ["sdpa", "eager"])


class FisherForAudioClassification(FisherPreTrainedModel, EncoderForAudioClassification):
    """A linear map of FISHER's class tokens: its authors gave it no head, so this is the tests'."""

    def __init__(self, config: FisherConfig) -> None:
        super().__init__(config)
        self.fisher = FisherModel(config)
        size = self.fisher.num_class_tokens * config.hidden_size
        self.head = nn.Linear(size, config.num_labels)
        self.post_init()

    def classify(self, hidden_states: Tensor, attention_mask: Tensor | None) -> Tensor:
        return self.head(self.fisher.split(hidden_states)[0].flatten(1))


CLASSES = {
    "beats": (BeatsConfig, BeatsModel, BeatsForAudioClassification),
    "eat": (EatConfig, EatModel, EatForAudioClassification),
    "fisher": (FisherConfig, FisherModel, FisherForAudioClassification),
}


def tiny_config(name: str, **options) -> PreTrainedConfig:
    """Return the configuration of a small encoder; keyword arguments override its fields."""
    described = {key: value for key, value in ENCODERS[name].items() if key != "model_type"}
    return CLASSES[name][0](**(described | options))


def tiny(name: str, *, head: bool = False, **options) -> PreTrainedModel:
    """Return a small encoder, or one with a head, in evaluation mode, seeded."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CLASSES[name][1 + head](tiny_config(name, **options)).eval()


@functools.cache
def _original(name: str, file: str, head: bool) -> PreTrainedModel:
    return load_original(FIXTURES / name / file, head=head)


def authors(
    name: str, file: str | None = None, *, head: bool = False, attention: str = "sdpa", **options
) -> PreTrainedModel:
    """Return a fixture's model; keyword arguments set fields of its configuration."""
    model = copy.deepcopy(_original(name, file or CHECKPOINTS[name][head], head))
    model.set_attn_implementation(attention)
    for field, value in options.items():
        setattr(model.config, field, value)
    return model


def recorded(name: str) -> dict[str, Tensor]:
    """Return what the authors' code takes and gives, as recorded for the fixtures."""
    return load_file(FIXTURES / name / "io.safetensors")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def padded(lengths: list[int], *, filler: float = 0.0) -> tuple[Tensor, Tensor]:
    """Return clips of these lengths in one batch, and their attention mask."""
    waveform = torch.full((len(lengths), max(lengths)), filler)
    mask = torch.zeros(waveform.shape, dtype=torch.long)
    for row, length in enumerate(lengths):
        # Each with an offset of its own: what an encoder subtracts is of the clip's samples alone.
        waveform[row, :length] = noise(length, seed=row) + 0.1 * (row + 1)
        mask[row, :length] = 1
    return waveform, mask
