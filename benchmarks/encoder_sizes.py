"""The encoders that are measured, at their published sizes."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from benchmarks.plain_encoders import plain_beats, plain_eat, plain_fisher
from modeling import ENCODERS as CLASSES
from modeling import BeatsConfig, EatConfig, FisherConfig


class Encoder(NamedTuple):
    """How an encoder is made, and what it is timed against."""

    config: Callable[[], Any]
    plain: Callable[[Any, Tensor], Tensor]

    def build(self) -> PreTrainedModel:
        """Return the encoder with random weights, for evaluation."""
        config = self.config()
        model: PreTrainedModel = CLASSES[config.model_type](config)
        return model.eval()


def config_values(config: PreTrainedConfig) -> dict[str, Any]:
    """Return an encoder's configuration as train.py's `encoder_config` takes it."""
    own = {name: getattr(config, name) for name in type(config).__annotations__}
    return {"model_type": config.model_type} | own


EAT_LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
FISHER_MINI = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4}
FISHER_TINY = {"hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 3}
ENCODERS = {
    "beats_base": Encoder(BeatsConfig, plain_beats),
    "eat_base": Encoder(EatConfig, plain_eat),
    "eat_large": Encoder(lambda: EatConfig(**EAT_LARGE), plain_eat),
    "fisher_small": Encoder(FisherConfig, plain_fisher),
    "fisher_mini": Encoder(lambda: FisherConfig(**FISHER_MINI), plain_fisher),
    "fisher_tiny": Encoder(lambda: FisherConfig(**FISHER_TINY), plain_fisher),
}
