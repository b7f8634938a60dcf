"""Hidden states of a clip's patches -> its embedding."""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class HeardLayer(NamedTuple):
    """What one layer of the encoder makes of one channel: what `Pooling.forward` takes.

    Attributes:
        patches: (batch, patches, D), ordered by time, then by band.
        mask: (batch, patches) bool, True = sound.
        grid: (time, band), patches along both.
        class_tokens: (batch, class tokens, D).
    """

    patches: Tensor
    mask: Tensor
    grid: tuple[int, int]
    class_tokens: Tensor


class Pooling(nn.Module):
    """What all poolings share: padding is left out, and bands are pooled together or apart.

    Args:
        hidden_size: D, size of a hidden state.
        keep_bands: Pool over time only and keep one vector per band of patches.

    Attributes:
        output_size: Size of a pooled vector.
        reads_class_tokens: Whether it needs an encoder with class tokens.
    """

    reads_class_tokens = False

    def __init__(self, hidden_size: int, *, keep_bands: bool) -> None:
        super().__init__()
        self.output_size = hidden_size
        self.keep_bands = keep_bands

    def num_bands(self, band: int, num_class_tokens: int) -> int:  # noqa: ARG002  see ClsPooling
        """Return how many vectors come out per clip.

        Args:
            band: Bands of the patch grid.
            num_class_tokens: Of the encoder.
        """
        return band if self.keep_bands else 1

    def forward(
        self,
        patches: Tensor,
        mask: Tensor,
        grid: tuple[int, int],
        class_tokens: Tensor,  # noqa: ARG002  see ClsPooling
    ) -> Tensor:
        """Return embeddings (batch, bands, output_size), float32 (float64 if `patches` is).

        One band unless they are kept.

        Args:
            patches: (batch, patches, D) of any floating type, in time-major order: one band after
                another of the first time step, then of the second.
            mask: (batch, patches) bool, True = sound. Every clip needs a patch of sound.
            grid: (time, band), patches along both; their product is `patches`.
            class_tokens: (batch, class tokens, D) of the encoder, as many as it has.
        """
        patches = precise(patches)
        if self.keep_bands:
            tokens, mask = patches.unflatten(1, grid), mask.unflatten(1, grid)
        else:
            tokens, mask = patches[:, :, None], mask[:, :, None]
        # A padded patch may hold anything, also NaN, which a product with 0 would keep.
        return self.pool(tokens.masked_fill(~mask[..., None], 0.0), mask)

    def pool(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Pool (batch, tokens, bands, D), zero where `mask` (batch, tokens, bands) is False."""
        raise NotImplementedError


class MeanPooling(Pooling):
    """Mean of the patches that hold sound.

    Args:
        hidden_size: D, size of a hidden state.
        keep_bands: As `Pooling`'s.
    """

    def __init__(self, hidden_size: int, *, keep_bands: bool = False) -> None:
        super().__init__(hidden_size, keep_bands=keep_bands)

    def pool(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return (batch, bands, D)."""
        return masked_mean(tokens, mask)


class ClsPooling(Pooling):
    """The encoder's own summary, its class tokens: one of EAT, one per sub-band of FISHER.

    Args:
        hidden_size: D, size of a hidden state.
        keep_bands: Return each class token instead of their mean; joined, those of FISHER are the
            embedding of its authors.
    """

    reads_class_tokens = True

    def __init__(self, hidden_size: int, *, keep_bands: bool = False) -> None:
        super().__init__(hidden_size, keep_bands=keep_bands)

    def num_bands(self, band: int, num_class_tokens: int) -> int:  # noqa: ARG002  see Pooling
        """Return the number of class tokens, or 1."""
        return num_class_tokens if self.keep_bands else 1

    def forward(
        self,
        patches: Tensor,  # noqa: ARG002  of other poolings, like the two after it
        mask: Tensor,  # noqa: ARG002
        grid: tuple[int, int],  # noqa: ARG002
        class_tokens: Tensor,
    ) -> Tensor:
        """Return the class tokens (batch, class tokens, D) or their mean (batch, 1, D)."""
        tokens = precise(class_tokens)
        return tokens if self.keep_bands else tokens.mean(dim=1, keepdim=True)


class AttentiveStatisticsPooling(Pooling):
    """Mean and standard deviation under learnt weights, mapped to a small vector.

    Okabe et al. (2018), with a weight per token and dimension and with the statistics of the whole
    clip beside each token, as ECAPA-TDNN has them (Desplanques et al., 2020).

    Args:
        hidden_size: D, size of a hidden state. The attention is D / 16 wide inside.
        size: Of the embedding.
        keep_bands: As `Pooling`'s; the weights are the same for all bands.
    """

    def __init__(self, hidden_size: int, *, size: int = 256, keep_bands: bool = False) -> None:
        super().__init__(hidden_size, keep_bands=keep_bands)
        self.output_size = size
        width = max(1, hidden_size // 16)
        self.inner = nn.Linear(3 * hidden_size, width)
        self.inner_norm = nn.BatchNorm1d(width)
        self.attention = nn.Linear(width, hidden_size)
        self.statistics_norm = nn.BatchNorm1d(2 * hidden_size)
        self.mix = nn.Linear(2 * hidden_size, hidden_size)
        self.mix_norm = nn.BatchNorm1d(hidden_size)
        self.output = nn.Linear(hidden_size, size)

    def pool(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return (batch, bands, size)."""
        weights = self.attention_logits(tokens, mask).masked_fill(~mask[..., None], -torch.inf)
        weights = weights.softmax(dim=1)
        mean = (weights * tokens).sum(dim=1)  # (B, bands, D)
        std = deviation_of(tokens, mean, weights)
        statistics = torch.cat([mean, std], dim=-1).flatten(0, 1)  # (B * bands, 2D)
        # A model in half precision has its weights in it, too.
        mixed = self.mix(self.statistics_norm(statistics.to(self.mix.weight.dtype)))
        mixed = self.mix_norm(mixed.to(self.mix_norm.weight.dtype))  # autocast's maps are in half
        embedding = self.output(mixed.to(self.output.weight.dtype)).to(tokens.dtype)
        by_band: Tensor = embedding.unflatten(0, mean.shape[:2])
        return by_band

    def attention_logits(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return (batch, tokens, bands, D) of the type of `tokens`; anything in the padding."""
        dtype = self.inner.weight.dtype
        mean = masked_mean(tokens, mask)
        std = deviation_of(tokens, mean, equal_weights(tokens, mask)[..., None])
        # W1 (h_t; mean; std): what is the same for all tokens is multiplied once.
        own, shared = self.inner.weight.split([tokens.shape[-1], 2 * tokens.shape[-1]], dim=1)
        context = nn.functional.linear(
            torch.cat([mean, std], dim=-1).to(dtype), shared, self.inner.bias
        )
        inner = nn.functional.linear(tokens.to(dtype), own) + context[:, None]
        inner = inner.relu().to(self.inner_norm.weight.dtype)
        if self.training:  # padding is no part of the statistics
            normalised = self.inner_norm(inner[mask])
            inner = torch.zeros_like(inner).masked_scatter(mask[..., None], normalised)
        else:
            inner = self.inner_norm(inner.flatten(0, 2)).unflatten(0, inner.shape[:3])
        logits: Tensor = self.attention(inner.tanh().to(dtype))
        return logits.to(tokens.dtype)


class RdpPooling(Pooling):
    """Relative deviation pooling: a token counts the more, the further it is from the clip's mean.

    From arXiv 2603.04605.

    Args:
        hidden_size: D, size of a hidden state.
        gamma: Exponent of the weights (1 + d / max d); 0 is the plain mean.
        zero_below: Elements below it become 0 first; None leaves them.
        tanh_above: Elements above it become their tanh; None leaves them. For EAT the authors need
            `zero_below=0.1` and `tanh_above=0.5`.
        keep_bands: As `Pooling`'s; each band has a mean and weights of its own.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        gamma: float = 4.0,
        zero_below: float | None = None,
        tanh_above: float | None = None,
        keep_bands: bool = False,
    ) -> None:
        super().__init__(hidden_size, keep_bands=keep_bands)
        self.gamma = gamma
        self.zero_below = zero_below
        self.tanh_above = tanh_above

    def pool(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return (batch, bands, D)."""
        tokens = limited(tokens, zero_below=self.zero_below, tanh_above=self.tanh_above)
        return (relative_deviation_weights(tokens, mask, self.gamma)[..., None] * tokens).sum(dim=1)


class GemPooling(Pooling):
    """Generalised mean (mean of max(x, 0) ** p) ** (1 / p), by default over all tokens alike.

    Radenovic et al. (2018); with the weights of `RdpPooling` arXiv 2603.04605.

    Args:
        hidden_size: D, size of a hidden state.
        p: Exponent, above 0: 1 is the mean of what is positive, infinity would be the maximum.
        gamma: Of RDP's weights; None weighs all tokens alike.
        zero_below: As `RdpPooling`'s.
        tanh_above: As `RdpPooling`'s.
        keep_bands: As `Pooling`'s.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        p: float = 3.0,
        gamma: float | None = None,
        zero_below: float | None = None,
        tanh_above: float | None = None,
        keep_bands: bool = False,
    ) -> None:
        super().__init__(hidden_size, keep_bands=keep_bands)
        if p <= 0:
            raise ValueError(f"p={p} of the generalised mean must be above 0; 3 is usual.")
        self.p = p
        self.gamma = gamma
        self.zero_below = zero_below
        self.tanh_above = tanh_above

    def pool(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return (batch, bands, D)."""
        tokens = limited(tokens, zero_below=self.zero_below, tanh_above=self.tanh_above)
        if self.gamma is None:
            weights = equal_weights(tokens, mask)
        else:
            weights = relative_deviation_weights(tokens, mask, self.gamma)
        positive = tokens.relu()
        # Relative to the largest, whose power then neither overflows nor vanishes. It cancels out,
        # also in the derivative, so none is needed of it.
        largest = positive.detach().amax(dim=1)  # (B, bands, D)
        some = largest > 0
        scale = largest.where(some, 1.0)
        mean = (weights[..., None] * (positive / scale[:, None]) ** self.p).sum(dim=1)
        # The root of 0 has no derivative.
        return scale * (mean.where(some, 1.0) ** (1 / self.p)).where(some, 0.0)


def precise(hidden: Tensor) -> Tensor:
    """Return hidden states in float32 at least.

    In half precision a sum over 400 patches would lose most of its bits.
    """
    return hidden.to(torch.promote_types(hidden.dtype, torch.float32))


def masked_mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """Return the mean (batch, bands, D) of tokens (batch, tokens, bands, D), zero in the padding.

    Args:
        tokens: Of float32 or float64.
        mask: (batch, tokens, bands) bool, True = sound.
    """
    return tokens.sum(dim=1) / mask.sum(dim=1)[..., None]


def deviation_of(tokens: Tensor, mean: Tensor, weights: Tensor) -> Tensor:
    """Return the standard deviation (batch, bands, D) about `mean`, at least 0.01.

    Args:
        tokens: (batch, tokens, bands, D).
        mean: (batch, bands, D), under the same weights.
        weights: Broadcast to `tokens`, 0 in the padding; their sum over tokens is 1.
    """
    variance = (weights * (tokens - mean[:, None]).square()).sum(dim=1)
    # Clamp before the root, whose slope at 0 is infinite.
    return variance.clamp_min(1e-4).sqrt()


def equal_weights(tokens: Tensor, mask: Tensor) -> Tensor:
    """Return one weight for each token of sound, as `relative_deviation_weights` does."""
    return mask.to(tokens.dtype) / mask.sum(dim=1, keepdim=True)


def relative_deviation_weights(tokens: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """Return the weights (batch, tokens, bands) of RDP: 0 in the padding, their sum over tokens 1.

    Args:
        tokens: (batch, tokens, bands, D), zero in the padding.
        mask: (batch, tokens, bands) bool, True = sound.
        gamma: Exponent; 0 weighs all alike.
    """
    deviation = torch.linalg.vector_norm(tokens - masked_mean(tokens, mask)[:, None], dim=-1)
    deviation = deviation.masked_fill(~mask, 0.0)
    # In a constant clip all deviations are 0, and all tokens weigh alike.
    relative = deviation / deviation.amax(dim=1, keepdim=True).clamp_min(1e-12)
    # (1 + d) ** gamma over its sum, as a softmax, which no gamma overflows.
    logits: Tensor = gamma * relative.log1p()
    return logits.masked_fill(~mask, -torch.inf).softmax(dim=1)


def limited(tokens: Tensor, *, zero_below: float | None, tanh_above: float | None) -> Tensor:
    """Return tokens whose small elements are 0 and whose large ones are bounded, as asked for."""
    if zero_below is not None:
        tokens = tokens.masked_fill(tokens < zero_below, 0.0)
    if tanh_above is not None:
        tokens = torch.where(tokens > tanh_above, tokens.tanh(), tokens)
    return tokens


POOLINGS = {  # name in AsdConfig -> constructor
    "mean": MeanPooling,
    "cls": ClsPooling,
    "attentive_statistics": AttentiveStatisticsPooling,
    "rdp": RdpPooling,
    "gem": GemPooling,
}

__all__ = [
    "POOLINGS",
    "AttentiveStatisticsPooling",
    "ClsPooling",
    "GemPooling",
    "HeardLayer",
    "MeanPooling",
    "Pooling",
    "RdpPooling",
]
