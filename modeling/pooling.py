"""Hidden states of a clip's patches -> its embedding."""

import torch
from torch import Tensor, nn


class MeanPooling(nn.Module):
    """Mean of the patches that hold sound.

    Args:
        hidden_size: D, size of a hidden state.
        keep_bands: Average over time only and keep one vector per mel band.

    Attributes:
        output_size: Size of a pooled vector, here D.
    """

    def __init__(self, hidden_size: int, *, keep_bands: bool = False) -> None:
        super().__init__()
        self.output_size = hidden_size
        self.keep_bands = keep_bands

    def forward(self, hidden: Tensor, mask: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return embeddings (batch, bands, D), float32 (float64 if `hidden` is).

        One band unless they are kept.

        Args:
            hidden: (batch, patches, D) of any floating type; patches in time-major order, as one
                band after another of the first time step, then of the second.
            mask: (batch, patches) bool, True = sound. Every clip needs a patch of sound.
            grid: (time, band), patches along both; their product is `patches`.
        """
        # In half precision a sum over 400 patches would lose most of its bits.
        hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        if self.keep_bands:
            hidden, mask = hidden.unflatten(1, grid), mask.unflatten(1, grid)  # (B, time, band, D)
        else:
            hidden, mask = hidden[:, :, None], mask[:, :, None]  # (B, patches, 1, D)
        # A padded patch may hold anything, also NaN, which a product with 0 would keep.
        total = hidden.masked_fill(~mask[..., None], 0.0).sum(dim=1)  # (B, bands, D)
        return total / mask.sum(dim=1)[..., None]


POOLINGS = {"mean": MeanPooling}  # name in AsdConfig -> constructor

__all__ = ["POOLINGS", "MeanPooling"]
