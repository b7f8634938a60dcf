"""Configurations of the encoders and of the detector built on one of them."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Self

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .adversary import ADVERSARIES
from .detectors import DETECTORS
from .front_ends import FRONT_ENDS
from .heads import HEADS
from .pooling import POOLINGS

FORMAT_VERSION = 1  # of a published folder; older ones keep loading
CHANNELS = {  # that can be scored -> those that are encoded for it
    "near": ("near",),
    "unprocessed": ("unprocessed",),
    "far": ("far",),
    "residual": ("near", "far"),
}


class OwnTypeConfig(PreTrainedConfig):
    """A configuration that refuses to be read from a model of another type.

    transformers only warns, and gives every weight that has another name a random value.
    """

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Self:  # noqa: ANN401  what transformers passes on
        """Return the configuration, as in transformers.

        Raises:
            ValueError: The values are of a model of another type.
        """
        came = config_dict.get("model_type", cls.model_type)
        if came != cls.model_type:
            raise ValueError(
                f"This checkpoint is of a {came!r}, but {cls.__name__} describes a "
                f"{cls.model_type!r}. Load it with the class of its own, or with AutoModel."
            )
        return super().from_dict(config_dict, **kwargs)


@strict
class BeatsConfig(OwnTypeConfig):
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


@strict
class EatConfig(OwnTypeConfig):
    """Configuration of an `EatModel`; the defaults are those of the released EAT-base.

    EAT-large has hidden_size 1024, intermediate_size 4096, 24 layers and 16 heads.

    Args:
        hidden_size: Size of a token inside the Transformer.
        num_hidden_layers: Transformer layers.
        num_attention_heads: Heads per layer; `hidden_size` is a multiple of it.
        intermediate_size: Inner size of the feed-forward part.
        patch_size: Frames and mel bins covered by one patch (its stride, too).
        max_length: Patches along time that the position table holds, so the longest clip.
        target_length: Frames to which every clip is padded with zeros, which count as sound, or
            cut. None: each clip is padded up to a whole patch. The authors take 1024 for 10 s.
        layer_norm_eps: Epsilon of the encoder's LayerNorms.
        head_norm_eps: Epsilon of the LayerNorm before the classifier.
        hidden_dropout: Dropout after attention and feed-forward.
        attention_dropout: Dropout on attention weights.
        activation_dropout: Dropout inside the feed-forward part.
        input_dropout: Dropout on the input of the first layer.
        layerdrop: Probability of leaving out a layer in training.
        initializer_range: Standard deviation of newly drawn weights.
        num_mel_bins: Mel bins of the spectrogram.
        spectrogram_mean: Subtracted from the log-mel spectrogram.
        spectrogram_std: Half of what the spectrogram is divided by.
        sampling_rate: Of the waveform, in hertz.
    """

    model_type = "nearfar_eat"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    patch_size: int = 16
    max_length: int = 768
    target_length: int | None = None
    layer_norm_eps: float = 1e-6
    head_norm_eps: float = 1e-6
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    input_dropout: float = 0.0
    layerdrop: float = 0.0
    initializer_range: float = 0.02
    num_mel_bins: int = 128
    spectrogram_mean: float = -4.268
    spectrogram_std: float = 4.569
    sampling_rate: int = 16_000

    def validate_hidden_size(self) -> None:
        """Refuse a hidden size that heads, or sines and cosines of two axes, cannot share."""
        check_hidden_size(self.hidden_size, self.num_attention_heads)

    def validate_target_length(self) -> None:
        """Refuse a length that is not of whole patches, or longer than the position table."""
        longest = self.max_length * self.patch_size
        length = self.target_length
        if length is not None and (length % self.patch_size or not 0 < length <= longest):
            raise ValueError(
                f"target_length={length} is not a multiple of patch_size={self.patch_size} from "
                f"{self.patch_size} to {longest} frames."
            )


@strict
class FisherConfig(OwnTypeConfig):
    """Configuration of a `FisherModel`; the defaults are those of the released FISHER-small.

    FISHER-tiny has hidden_size 192, intermediate_size 768 and 3 heads; FISHER-mini 256, 1024 and 4.

    Args:
        hidden_size: Size of a token inside the Transformer.
        num_hidden_layers: Transformer layers.
        num_attention_heads: Heads per layer; `hidden_size` is a multiple of it.
        intermediate_size: Inner size of the feed-forward part.
        patch_size: Frames and bins covered by one patch (its stride, too).
        band_width: Bins of a sub-band, 40 Hz each; what does not fill a patch is not seen.
        max_length: Patches along time that the position table was made for.
        max_freq: Patches along frequency that it was made for; it has max_length * max_freq rows.
        flatten: Which axis of a sub-band's patches runs fastest in its sequence.
        max_frames: Frames of a clip that are heard; later ones are cut off.
        target_length: Frames to which every clip is padded with zeros, which count as sound, or
            cut. None: no padding. The authors' published scores were obtained with 1024.
        layer_norm_eps: Epsilon of every LayerNorm.
        hidden_dropout: Dropout after attention and feed-forward.
        attention_dropout: Dropout on attention weights.
        activation_dropout: Dropout inside the feed-forward part.
        input_dropout: Dropout on the input of the first layer.
        layerdrop: Probability of leaving out a layer in training.
        initializer_range: Standard deviation of newly drawn weights.
        spectrogram_mean: Subtracted from the log-magnitude spectrogram.
        spectrogram_std: Half of what the spectrogram is divided by.
        sampling_rate: Of the waveform, in hertz, where a call does not say otherwise.
    """

    model_type = "nearfar_fisher"

    hidden_size: int = 384
    num_hidden_layers: int = 12
    num_attention_heads: int = 6
    intermediate_size: int = 1536
    patch_size: int = 16
    band_width: int = 50
    max_length: int = 128
    max_freq: int = 50
    flatten: Literal["freq", "time"] = "freq"
    max_frames: int = 1024
    target_length: int | None = None
    layer_norm_eps: float = 1e-6
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    input_dropout: float = 0.0
    layerdrop: float = 0.0
    initializer_range: float = 0.02
    spectrogram_mean: float = -3.017344307886898
    spectrogram_std: float = 2.1531635155379805
    sampling_rate: int = 16_000

    def validate_hidden_size(self) -> None:
        """Refuse a hidden size that heads, or sines and cosines of two axes, cannot share."""
        check_hidden_size(self.hidden_size, self.num_attention_heads)

    def validate_band_width(self) -> None:
        """Refuse sub-bands without a patch."""
        if not 0 < self.patch_size <= self.band_width:
            raise ValueError(
                f"band_width={self.band_width} bins hold no patch of {self.patch_size}."
            )

    def validate_target_length(self) -> None:
        """Refuse lengths without a patch, or longer than what is heard."""
        shortest = self.max_frames if self.target_length is None else self.target_length
        if not self.patch_size <= shortest <= self.max_frames:
            raise ValueError(
                f"target_length={self.target_length} and max_frames={self.max_frames} do not fit: "
                f"one patch takes {self.patch_size} frames, and max_frames is the most."
            )

    def validate_sampling_rate(self) -> None:
        """Refuse a rate at which 10 ms hold no sample."""
        if self.sampling_rate < 100:
            raise ValueError(f"sampling_rate={self.sampling_rate} Hz; it is at least 100.")


ENCODER_CONFIGS: dict[str, type[PreTrainedConfig]] = {
    config.model_type: config for config in (BeatsConfig, EatConfig, FisherConfig)
}


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
class NoiseAwareConfig(OwnTypeConfig):
    """Configuration of a `NoiseAwareModel`: an encoder, and with what its near looks at far.

    The defaults are those that the winner of DCASE 2026 Task 2 reports (MERL, TR2026-100).

    Args:
        encoder_config: Of the encoder that is made noise-aware, or its dict.
        num_attention_heads: Heads with which near looks at far; the encoder's hidden size is a
            multiple of it.
        feed_forward_factor: Inner size of the feed-forward part after it, in hidden sizes.
        fusion_dropout: Dropout after both.
    """

    model_type = "nearfar_noise_aware"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "encoder_config": EncoderSpec(AutoConfig, model_type="nearfar_beats")
    }

    encoder_config: dict[str, Any] | PreTrainedConfig | None = None
    num_attention_heads: int = 8
    feed_forward_factor: int = 3
    fusion_dropout: float = 0.1

    def validate_encoder_config(self) -> None:
        """Refuse an encoder that is noise-aware, and heads that cannot share its hidden size."""
        encoder_config: Any = self.encoder_config  # of the class that its model_type names
        if encoder_config.model_type == self.model_type:
            raise ValueError(
                "encoder_config is of a noise-aware encoder. Give that of the encoder in it."
            )
        if encoder_config.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"The encoder's hidden_size={encoder_config.hidden_size} is not a multiple of "
                f"num_attention_heads={self.num_attention_heads}."
            )

    # What is asked of any encoder's configuration, to be read only.

    @property
    def hidden_size(self) -> int:
        """Size of a token inside the encoder."""
        return self._of_encoder("hidden_size")

    @property
    def num_hidden_layers(self) -> int:
        """Its layers."""
        return self._of_encoder("num_hidden_layers")

    @property
    def patch_size(self) -> int:
        """Frames covered by one patch."""
        return self._of_encoder("patch_size")

    @property
    def sampling_rate(self) -> int:
        """Of the waveforms, in hertz."""
        return self._of_encoder("sampling_rate")

    def _of_encoder(self, name: str) -> int:
        value: int = getattr(self.encoder_config, name)
        return value


ENCODER_CONFIGS[NoiseAwareConfig.model_type] = NoiseAwareConfig


@strict
class AsdConfig(OwnTypeConfig):
    """Configuration of an `AsdModel`: encoder, front end, what is scored, head and detector.

    Args:
        encoder_config: Of the encoder, or its dict; its `model_type` says which encoder.
        front_end: What happens to near and far before the encoder, a key of `FRONT_ENDS`.
        front_end_options: Keyword arguments of its constructor.
        channels: Channels scored, one or more views each: "near" is what the front end returns,
            "unprocessed" the near microphone before it, "far" the far microphone; "residual" is
            the pooled embedding of near minus `residual_weight` times that of far.
        residual_weight: See `channels`.
        layers: Encoder layers scored, one view each per channel, in this order, counted from 1;
            None takes the last. Views are ordered by channel, then by layer.
        pooling: How a layer's patches become one embedding, a key of `POOLINGS`. "cls" takes the
            encoder's class tokens instead, which BEATs does not have.
        pooling_options: Keyword arguments of its constructor.
        join_bands: Whether the bands that pooling kept become one long vector. A projection then
            has weights and statistics of their own for each; otherwise it is the same for all.
        projection: What stands between pooling and head; "batch_norm_linear" normalises each
            dimension over the training clips first.
        projection_size: Size of the projected embedding; None keeps the pooled one's.
        projection_dropout: Dropout before the linear map.
        scored_embedding: Whether the pooled or the projected embedding is scored. The head always
            sees the mean of the projected one over views and bands.
        scored_pooling: Pooling of the scored embedding where it is not `pooling`, which then only
            serves the head: training by attentive statistics, scoring by RDP with bands kept. One
            without weights, as no loss would train them. None: the same.
        scored_pooling_options: Keyword arguments of its constructor.
        head: Name of the training head, a key of `HEADS`.
        head_options: Keyword arguments of its constructor; a margin is in radians.
        adversaries: What the embedding is trained not to tell, by a classifier behind a gradient
            reversal each: "domain" (source or target), "channel" (near or far; both must be among
            `channels`).
        adversary_options: Keyword arguments of the constructor of each, see `ADVERSARIES`.
        detector: Name of the detector, a key of `DETECTORS`.
        detector_options: Keyword arguments of its constructor.
        sampling_rate: Of near and far, in hertz; the encoder's.
        format_version: Of the folder that this configuration belongs to.
    """

    model_type = "nearfar_asd"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "encoder_config": EncoderSpec(AutoConfig, model_type="nearfar_beats")
    }

    encoder_config: dict[str, Any] | PreTrainedConfig | None = None
    front_end: Literal[
        "near",
        "complex_least_squares",
        "spectral_subtraction",
        "wiener",
        "coherence",
        "lms",
        "nlms",
        "rls",
        "block_nlms",
    ] = "near"
    front_end_options: dict[str, Any] | None = None
    channels: list[str] | tuple[str, ...] = ("near",)
    residual_weight: float = 0.5
    layers: list[int] | None = None
    pooling: Literal["mean", "cls", "attentive_statistics", "rdp", "gem"] = "mean"
    pooling_options: dict[str, Any] | None = None
    join_bands: bool = False
    projection: Literal["none", "linear", "batch_norm_linear"] = "none"
    projection_size: int | None = None
    projection_dropout: float = 0.0
    scored_embedding: Literal["pooled", "projected"] = "pooled"
    scored_pooling: Literal["mean", "cls", "rdp", "gem"] | None = None
    scored_pooling_options: dict[str, Any] | None = None
    head: Literal["arcface", "adacos", "subcluster_adacos", "adaproj", "os_scl"] = "arcface"
    head_options: dict[str, Any] | None = None
    adversaries: list[str] | tuple[str, ...] = ()
    adversary_options: dict[str, Any] | None = None
    detector: Literal["knn", "mahalanobis", "kmeans", "gmm", "lof"] = "knn"
    detector_options: dict[str, Any] | None = None
    sampling_rate: int = 16_000
    format_version: int = FORMAT_VERSION

    def validate_format_version(self) -> None:
        """Refuse a folder that a newer nearfar wrote."""
        check_format_version(self.format_version)

    def validate_channels(self) -> None:
        """Refuse unknown or repeated channels."""
        channels = list(self.channels)
        if not channels or set(channels) - set(CHANNELS) or len(set(channels)) < len(channels):
            raise ValueError(
                f"channels={channels} must name one or more of {list(CHANNELS)}, each once."
            )
        if "unprocessed" in channels and self.front_end == "near":
            raise ValueError(
                "channels has 'unprocessed', but front_end='near' processes nothing. Name a front "
                "end, or leave 'unprocessed' out."
            )

    def validate_adversaries(self) -> None:
        """Refuse unknown or repeated adversaries, options without one, and one channel alone."""
        adversaries = list(self.adversaries)
        if set(adversaries) - set(ADVERSARIES) or len(set(adversaries)) < len(adversaries):
            raise ValueError(
                f"adversaries={adversaries} must be among {list(ADVERSARIES)}, each at most once."
            )
        if self.adversary_options and not adversaries:
            raise ValueError(
                f"adversary_options={self.adversary_options} came without adversaries. Name one, "
                "or leave them out."
            )
        if "channel" in adversaries and len(self.channels) < 2:
            raise ValueError(
                f"adversaries={adversaries} tells near from far, but only {list(self.channels)} "
                "is encoded. Set channels=['near', 'far'], or leave 'channel' out."
            )

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

    def validate_scored_pooling(self) -> None:
        """Refuse options without a pooling, and one whose result would not be scored."""
        if self.scored_pooling is None:
            if self.scored_pooling_options:
                raise ValueError(
                    f"scored_pooling_options={self.scored_pooling_options} came without a "
                    "scored_pooling. Name one, or give pooling_options."
                )
            return
        if self.scored_embedding != "pooled":
            raise ValueError(
                f"scored_pooling={self.scored_pooling!r} is not projected, so "
                f"scored_embedding={self.scored_embedding!r} would score the other one. Set "
                "scored_embedding='pooled', or leave out scored_pooling."
            )

    def validate_sampling_rate(self) -> None:
        """Refuse another sampling rate than the encoder's."""
        encoder_config: Any = self.encoder_config  # of the class that its model_type names
        if self.sampling_rate != encoder_config.sampling_rate:
            raise ValueError(
                f"sampling_rate={self.sampling_rate}, but the encoder hears "
                f"{encoder_config.sampling_rate} Hz. Set both to the rate of the clips."
            )

    def validate_options(self) -> None:
        """Refuse options that the chosen part does not take."""
        check_options("front_end", self.front_end, self.front_end_options, FRONT_ENDS)
        FRONT_ENDS[self.front_end](**(self.front_end_options or {}))  # it checks their values
        check_options("pooling", self.pooling, self.pooling_options, POOLINGS)
        if self.scored_pooling is not None:
            check_options(
                "scored_pooling", self.scored_pooling, self.scored_pooling_options, POOLINGS
            )
        check_options("head", self.head, self.head_options, HEADS)
        for name in self.adversaries:
            check_options("adversary", name, self.adversary_options, ADVERSARIES)
        check_options("detector", self.detector, self.detector_options, DETECTORS)
        DETECTORS[self.detector](**(self.detector_options or {}))  # it checks their values

    def validate_margin(self) -> None:
        """Refuse a margin in degrees."""
        margin = (self.head_options or {}).get("margin", 0.0)
        if not 0.0 <= margin < math.pi / 2:
            raise ValueError(
                f"margin is an angle in radians in [0, pi/2), got {margin}. "
                f"If you meant degrees, use {math.radians(margin):.3f}."
            )


def check_format_version(format_version: int) -> None:
    """Raise ValueError where a newer nearfar wrote a folder."""
    if format_version > FORMAT_VERSION:
        raise ValueError(
            f"This checkpoint has format version {format_version}, but this code reads "
            f"versions up to {FORMAT_VERSION}. Update nearfar, or load the checkpoint with "
            "its own code: trust_remote_code=True where nearfar is not installed."
        )


def check_hidden_size(hidden_size: int, num_attention_heads: int) -> None:
    """Raise ValueError where heads, or sines and cosines of two axes, cannot share a size."""
    if hidden_size % num_attention_heads or hidden_size % 4:
        raise ValueError(
            f"hidden_size={hidden_size} is not a multiple of "
            f"num_attention_heads={num_attention_heads} and of 4."
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
EatConfig.register_for_auto_class()
FisherConfig.register_for_auto_class()
NoiseAwareConfig.register_for_auto_class()
AsdConfig.register_for_auto_class()

__all__ = [
    "CHANNELS",
    "ENCODER_CONFIGS",
    "FORMAT_VERSION",
    "AsdConfig",
    "BeatsConfig",
    "EatConfig",
    "FisherConfig",
    "NoiseAwareConfig",
]
