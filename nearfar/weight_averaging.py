"""Weights averaged over training: the moving average, and the mean of the best ones."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """Exponential moving average of the weights that train (Polyak and Juditsky, 1992).

    After each update a <- decay a + (1 - decay) w, with the weight of all updates so far brought to
    1 as Adam does: the weights before training do not count, so that the average of a short
    training is of use, too; after some 10 / (1 - decay) updates that makes no difference.
    Frozen weights are what they are, and buffers, such as the statistics of batch normalisation,
    are those of the last update.

    Args:
        model: Its weights that require a gradient now are averaged.
        decay: In [0, 1); 0 keeps no average, and `applied` and `apply` leave the model as it is.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.weights: dict[str, Tensor] = {}
        if decay:
            self.weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.averages = {name: weight.detach().clone() for name, weight in self.weights.items()}

    def update(self) -> None:
        """Take in the model's weights, after an optimiser update."""
        if not self.weights:
            return
        self.num_updates += 1
        share = (1 - self.decay) / (1 - self.decay**self.num_updates)
        averages = list(self.averages.values())
        weights = [weight.detach() for weight in self.weights.values()]
        get_ema_multi_avg_fn(1 - share)(averages, weights, self.num_updates)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model the average, and its own weights back, to the bit, at the end."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def apply(self) -> None:
        """Give the model the average for good."""
        if self.num_updates:
            for name, weight in self.weights.items():
                weight.copy_(self.averages[name])

    @torch.no_grad()
    def _swap(self) -> None:
        if not self.num_updates:
            return
        for name, weight in self.weights.items():
            own = weight.clone()
            weight.copy_(self.averages[name])
            self.averages[name].copy_(own)

    def state_dict(self) -> dict[str, Any]:
        """Return the average and how many updates are in it."""
        return {"decay": self.decay, "num_updates": self.num_updates, "averages": self.averages}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: The state is of another decay.
        """
        if state["decay"] != self.decay:
            raise ValueError(
                f"The saved state was trained with ema_decay={state['decay']}, got "
                f"ema_decay={self.decay}. Go on with the same, or train anew without "
                "--resume_from_checkpoint."
            )
        self.num_updates = state["num_updates"]
        for name, average in self.averages.items():
            average.copy_(state["averages"][name])


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Return copies, on the CPU, of what training changes: weights that train, and buffers."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    return {
        name: tensor.detach().to("cpu", copy=True)
        for name, tensor in model.state_dict().items()
        if name not in frozen
    }


@torch.no_grad()
def load_mean(model: nn.Module, snapshots: Sequence[Mapping[str, Tensor]]) -> None:
    """Give a model the mean of snapshots of it; what does not float is taken from the first.

    Args:
        model: Of the same parts.
        snapshots: One or more of `snapshot`.
    """
    state = model.state_dict()
    for name, first in snapshots[0].items():
        value = first
        if first.is_floating_point():
            stacked = torch.stack([tensors[name].double() for tensors in snapshots])
            value = stacked.mean(dim=0).to(first.dtype)
        state[name].copy_(value)
