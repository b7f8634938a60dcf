"""Configuration of the autoencoders of the official baselines."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict

from .configuration_asd import FORMAT_VERSION, OwnTypeConfig, check_format_version, check_options
from .detectors import BANK_DETECTORS


@strict
class AutoencoderConfig(OwnTypeConfig):
    """Configuration of an `AutoencoderModel`; the defaults are those of the official baselines.

    Args:
        machines: Full names, such as "2026/fan/00"; each has networks of its own, in this order.
        channels: Channels heard, one network and one view each.
        scoring: "mse" is the mean squared error of a clip; "mahalanobis" how far its mean residual
            lies from zero, by the covariance of source or of target residuals, whichever is nearer.
        num_mel_bins: Of the spectrogram.
        n_fft: Samples of a frame, an even number.
        hop_length: Samples from one frame to the next.
        num_stacked_frames: Consecutive frames that make one input vector; vectors start one frame
            apart.
        hidden_size: Of every hidden layer but the bottleneck.
        num_hidden_layers: Hidden layers on each side of the bottleneck.
        bottleneck_size: Of the layer in the middle.
        batch_norm_momentum: Weight of a batch in the running statistics, as torch counts it.
        batch_norm_eps: Added to a variance.
        detector: Which of `BANK_DETECTORS` scores; the networks' output is the score already.
        detector_options: Keyword arguments of its constructor.
        sampling_rate: Of near and far, in hertz.
        format_version: Of the folder that this configuration belongs to.
    """

    model_type = "nearfar_autoencoder"

    machines: list[str] | tuple[str, ...] = ()
    channels: list[str] | tuple[str, ...] = ("near",)
    scoring: Literal["mse", "mahalanobis"] = "mse"
    num_mel_bins: int = 128
    n_fft: int = 1024
    hop_length: int = 512
    num_stacked_frames: int = 5
    hidden_size: int = 128
    num_hidden_layers: int = 4
    bottleneck_size: int = 8
    batch_norm_momentum: float = 0.01
    batch_norm_eps: float = 1e-3
    detector: Literal["norm"] = "norm"
    detector_options: dict[str, Any] | None = None
    sampling_rate: int = 16_000
    format_version: int = FORMAT_VERSION

    def validate_format_version(self) -> None:
        """Refuse a folder that a newer nearfar wrote."""
        check_format_version(self.format_version)

    def validate_machines(self) -> None:
        """Refuse a machine that is named twice."""
        if twice := sorted({name for name in self.machines if list(self.machines).count(name) > 1}):
            raise ValueError(f"machines name {twice} more than once. Name each machine once.")

    def validate_channels(self) -> None:
        """Refuse unknown or repeated channels."""
        channels = list(self.channels)
        if not channels or set(channels) - {"near", "far"} or len(set(channels)) < len(channels):
            raise ValueError(f"channels={channels} must name 'near', 'far' or both, each once.")

    def validate_detector_options(self) -> None:
        """Refuse what the detector does not take."""
        check_options("detector", self.detector, self.detector_options, BANK_DETECTORS)
        BANK_DETECTORS[self.detector](**(self.detector_options or {}))  # it checks their values

    def validate_sizes(self) -> None:
        """Refuse sizes of which no network can be built."""
        names = ("num_mel_bins", "n_fft", "hop_length", "num_stacked_frames", "hidden_size")
        for name in (*names, "num_hidden_layers", "bottleneck_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.n_fft % 2:
            raise ValueError(f"n_fft={self.n_fft} must be even: half of it lies before a frame.")


AutoencoderConfig.register_for_auto_class()

__all__ = ["AutoencoderConfig"]
