"""Configurations of the encoders and of the detector built on one of them."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .detectors import DETECTORS
from .front_ends import FRONT_ENDS
from .heads import HEADS
from .pooling import POOLINGS

FORMAT_VERSION = 1  # of a published folder; older ones keep loading


@strict
class BeatsConfig(PreTrainedConfig):
    """Configuration of a `BeatsModel`; the defaults are those of the released BEATs-base.

    Args:
        hidden_size: Size of a patch embedding inside the Transformer.
        num_hidden_layers: Transformer layers.
        num_attention_heads: Heads per layer; `hidden_size` is a multiple of it.
        intermediate_size: Inner size of the feed-forward part.
        patch_size: Frames and mel bins covered by one patch (its stride, too).
        patch_embedding_size: Channels of the patch convolution, before the projection.
        conv_bias: Whether the patch convolution has a bias.
        conv_position_kernel: Taps of the convolutional position embedding.
        conv_position_groups: Its groups.
        num_buckets: Buckets of the relative position bias, both directions together.
        max_distance: Distance in tokens from which all share the last bucket.
        gated_position_bias: Whether each head and query scales the bias by a gate of its own.
        deep_norm: Whether residuals are scaled by (2 * num_hidden_layers) ** 0.25.
        layer_norm_eps: Epsilon of every LayerNorm.
        hidden_dropout: Dropout after attention and feed-forward.
        attention_dropout: Dropout on attention weights.
        activation_dropout: Dropout inside the feed-forward part.
        input_dropout: Dropout on the projected patches.
        layerdrop: Probability of leaving out a layer in training.
        initializer_range: Standard deviation of newly drawn weights.
        num_mel_bins: Mel bins of the spectrogram.
        spectrogram_mean: Subtracted from the log-mel spectrogram.
        spectrogram_std: Half of what the spectrogram is divided by.
        sampling_rate: Of the waveform, in hertz.
    """

    model_type = "nearfar_beats"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    patch_size: int = 16
    patch_embedding_size: int = 512
    conv_bias: bool = False
    conv_position_kernel: int = 128
    conv_position_groups: int = 16
    num_buckets: int = 320
    max_distance: int = 800
    gated_position_bias: bool = True
    deep_norm: bool = True
    layer_norm_eps: float = 1e-5
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    input_dropout: float = 0.0
    layerdrop: float = 0.0
    initializer_range: float = 0.02
    num_mel_bins: int = 128
    spectrogram_mean: float = 15.41663
    spectrogram_std: float = 6.55582
    sampling_rate: int = 16_000

    def validate_hidden_size(self) -> None:
        """Refuse a hidden size that heads or groups cannot share."""
        for name in ("num_attention_heads", "conv_position_groups"):
            if self.hidden_size % getattr(self, name):
                raise ValueError(
                    f"hidden_size={self.hidden_size} is not a multiple of "
                    f"{name}={getattr(self, name)}."
                )


ENCODER_CONFIGS = {config.model_type: config for config in (BeatsConfig,)}


class EncoderSpec(SubConfigSpec):
    """Finds an encoder's config class among those of this module.

    Not in transformers' registry, which all checkpoints' own copies of this module would share.
    """

    def get_config_class(self, model_type: str | None = None) -> type[PreTrainedConfig]:
        """Return the class of a model type, or raise ValueError."""
        if model_type not in ENCODER_CONFIGS:
            raise ValueError(
                f"encoder_config has model_type={model_type!r}; the encoders are "
                f"{sorted(ENCODER_CONFIGS)}."
            )
        return ENCODER_CONFIGS[model_type]


@strict
class AsdConfig(PreTrainedConfig):
    """Configuration of an `AsdModel`: encoder, front end, what is scored, head and detector.

    Args:
        encoder_config: Of the encoder, or its dict; its `model_type` says which encoder.
        front_end: What happens to near and far before the encoder, a key of `FRONT_ENDS`.
        front_end_options: Keyword arguments of its constructor.
        channels: Channels encoded; "near" is what the front end returns. One or more views each.
        layers: Encoder layers scored, one view each per channel, in this order, counted from 1;
            None takes the last. Views are ordered by channel, then by layer.
        pooling: How a layer's patches become one embedding, a key of `POOLINGS`.
        pooling_options: Keyword arguments of its constructor.
        join_bands: Whether the bands that pooling kept become one long vector. A projection then
            has weights and statistics of their own for each; otherwise it is the same for all.
        projection: What stands between pooling and head; "batch_norm_linear" normalises each
            dimension over the training clips first.
        projection_size: Size of the projected embedding; None keeps the pooled one's.
        projection_dropout: Dropout before the linear map.
        scored_embedding: Whether the pooled or the projected embedding is scored. The head always
            sees the mean of the projected one over views and bands.
        head: Name of the training head, a key of `HEADS`.
        head_options: Keyword arguments of its constructor; a margin is in radians.
        detector: Name of the detector, a key of `DETECTORS`.
        detector_options: Keyword arguments of its constructor.
        sampling_rate: Of near and far, in hertz.
        format_version: Of the folder that this configuration belongs to.
    """

    model_type = "nearfar_asd"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "encoder_config": EncoderSpec(AutoConfig, model_type="nearfar_beats")
    }

    encoder_config: dict[str, Any] | PreTrainedConfig | None = None
    front_end: Literal["near", "complex_least_squares"] = "near"
    front_end_options: dict[str, Any] | None = None
    channels: list[str] | tuple[str, ...] = ("near",)
    layers: list[int] | None = None
    pooling: Literal["mean"] = "mean"
    pooling_options: dict[str, Any] | None = None
    join_bands: bool = False
    projection: Literal["none", "linear", "batch_norm_linear"] = "none"
    projection_size: int | None = None
    projection_dropout: float = 0.0
    scored_embedding: Literal["pooled", "projected"] = "pooled"
    head: Literal["arcface"] = "arcface"
    head_options: dict[str, Any] | None = None
    detector: Literal["knn"] = "knn"
    detector_options: dict[str, Any] | None = None
    sampling_rate: int = 16_000
    format_version: int = FORMAT_VERSION

    def validate_format_version(self) -> None:
        """Refuse a folder that a newer nearfar wrote."""
        if self.format_version > FORMAT_VERSION:
            raise ValueError(
                f"This checkpoint has format version {self.format_version}, but this code reads "
                f"versions up to {FORMAT_VERSION}. Update nearfar, or load the checkpoint with "
                "its own code: trust_remote_code=True where nearfar is not installed."
            )

    def validate_channels(self) -> None:
        """Refuse unknown or repeated channels."""
        channels = list(self.channels)
        if not channels or set(channels) - {"near", "far"} or len(set(channels)) < len(channels):
            raise ValueError(f"channels={channels} must name 'near', 'far' or both, each once.")

    def validate_layers(self) -> None:
        """Refuse layers that the encoder does not have."""
        encoder_config: Any = self.encoder_config  # of the class that its model_type names
        depth = encoder_config.num_hidden_layers
        wrong = [layer for layer in self.layers or [] if not 1 <= layer <= depth]
        if wrong or self.layers == []:
            raise ValueError(
                f"layers {wrong or '[]'} do not exist: the encoder has layers 1 to {depth}."
            )

    def validate_join_bands(self) -> None:
        """Refuse to join bands where pooling averages over them."""
        if self.join_bands and not (self.pooling_options or {}).get("keep_bands"):
            raise ValueError(
                "join_bands=True joins the bands that pooling keeps, and it keeps none. Set "
                "pooling_options={'keep_bands': True}."
            )

    def validate_options(self) -> None:
        """Refuse options that the chosen part does not take."""
        check_options("front_end", self.front_end, self.front_end_options, FRONT_ENDS)
        check_options("pooling", self.pooling, self.pooling_options, POOLINGS)
        check_options("head", self.head, self.head_options, HEADS)
        check_options("detector", self.detector, self.detector_options, DETECTORS)

    def validate_margin(self) -> None:
        """Refuse a margin in degrees."""
        margin = (self.head_options or {}).get("margin", 0.0)
        if not 0.0 <= margin < math.pi / 2:
            raise ValueError(
                f"margin is an angle in radians in [0, pi/2), got {margin}. "
                f"If you meant degrees, use {math.radians(margin):.3f}."
            )


def check_options(
    field: str,
    name: str,
    options: dict[str, Any] | None,
    constructors: Mapping[str, Callable[..., Any]],
) -> None:
    """Raise ValueError if `constructors[name]` has no keyword-only argument of an option's name."""
    parameters = inspect.signature(constructors[name]).parameters
    known = {key for key, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    if unknown := sorted(set(options or {}) - known):
        raise ValueError(
            f"{field}_options {unknown} are unknown to {field}={name!r}, which takes "
            f"{sorted(known) or 'none'}."
        )


BeatsConfig.register_for_auto_class()
AsdConfig.register_for_auto_class()

__all__ = ["ENCODER_CONFIGS", "FORMAT_VERSION", "AsdConfig", "BeatsConfig"]
