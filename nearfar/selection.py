"""Which weights a training ends with, judged by normal training clips that did not train them.

No anomaly and no test clip has a say: how well proxy classes of unheard normal clips are told apart
is all that is known before a machine breaks.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from nearfar.embeddings import evaluation_mode
from nearfar.training_clips import LabelledClips
from nearfar.weight_averaging import load_mean, snapshot

HIGHER_IS_BETTER = {"proxy_loss": False, "proxy_accuracy": True, "hidden_state_error": False}


class Selection:
    """The best weights so far, and whether there is hope for better ones.

    Args:
        metric: A key of `HIGHER_IS_BETTER`.
        keep_best: Weights kept; 0 keeps none, and `apply` leaves the model as it is.
        patience: Validations in a row without a new best that end training; None: it never does.
    """

    def __init__(self, *, metric: str, keep_best: int = 0, patience: int | None = None) -> None:
        self.metric = metric
        self.keep_best = keep_best
        self.patience = patience
        self.best_value = math.inf  # of the metric, negated where higher is better
        self.num_without_best = 0
        # (value as above, update, weights), best first; of equals the earlier one.
        self.kept: list[tuple[float, int, dict[str, Tensor]]] = []

    @property
    def is_exhausted(self) -> bool:
        """Whether training should stop."""
        return self.patience is not None and self.num_without_best >= self.patience

    @property
    def steps(self) -> list[int]:
        """Updates after which the kept weights were had, best first."""
        return [step for _, step, _ in self.kept]

    def note(self, model: nn.Module, step: int, values: Mapping[str, float]) -> None:
        """Take note of a validation, and of the model's weights if they are among the best.

        Args:
            model: As it was validated.
            step: Updates done.
            values: Of `validate`.
        """
        value = -values[self.metric] if HIGHER_IS_BETTER[self.metric] else values[self.metric]
        if value < self.best_value:
            self.best_value, self.num_without_best = value, 0
        else:
            self.num_without_best += 1
        if len(self.kept) < self.keep_best or (self.kept and value < self.kept[-1][0]):
            self.kept.append((value, step, snapshot(model)))
            self.kept.sort(key=lambda candidate: candidate[:2])
            del self.kept[self.keep_best :]

    def apply(self, model: nn.Module) -> None:
        """Give the model the mean of the kept weights, if any are kept."""
        if self.kept:
            load_mean(model, [weights for _, _, weights in self.kept])

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed training needs to choose as this one would."""
        return {
            "metric": self.metric,
            "best_value": self.best_value,
            "num_without_best": self.num_without_best,
            "kept": self.kept,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: The state is of another metric.
        """
        if state["metric"] != self.metric:
            raise ValueError(
                f"The saved state was trained with selection_metric={state['metric']!r}, got "
                f"{self.metric!r}. Go on with the same, or train anew without "
                "--resume_from_checkpoint."
            )
        self.best_value, self.num_without_best = state["best_value"], state["num_without_best"]
        self.kept = list(state["kept"])


@torch.no_grad()
def validate(
    model: nn.Module,
    clips: LabelledClips,
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
    accelerator: Accelerator,
    *,
    batch_size: int,
    num_workers: int = 0,
) -> dict[str, float]:
    """Return loss and accuracy of the proxy classes of clips, heard whole and as they are.

    The loss is the cross-entropy of the logits without a margin, whatever loss trains: a clip's
    own, so that it does not depend on the batch or the number of processes.

    Args:
        model: An `AsdForProxyClassification`; it is put back into the mode it was in.
        clips: That did not train.
        collate: Rows -> the model's inputs and `labels`.
        accelerator: Each process takes its share of the clips; all return the same.
        batch_size: Clips at once, in each process.
        num_workers: Processes that decode ahead.
    """
    loader = held_out_batches(
        clips,
        clips.in_order(),
        collate,
        accelerator,
        batch_size=batch_size,
        num_workers=num_workers,
    )
    sums = torch.zeros(3, dtype=torch.float64)
    with evaluation_mode(model):
        for batch in loader:
            labels = batch.pop("labels")
            inputs = {name: values.to(accelerator.device) for name, values in batch.items()}
            logits = model(**inputs).logits.cpu().double()
            loss = F.cross_entropy(logits, labels, reduction="sum")
            correct = (logits.argmax(dim=1) == labels).sum()
            sums += torch.stack([loss, correct.double(), torch.tensor(len(labels)).double()])
    total_loss, num_correct, count = sum_over_processes(sums, accelerator)
    return {"proxy_loss": total_loss / count, "proxy_accuracy": num_correct / count}


def held_out_batches(
    clips: Dataset[dict[str, Any]],
    order: Iterable[Any],
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]],
    accelerator: Accelerator,
    *,
    batch_size: int,
    num_workers: int,
) -> DataLoader[Any]:
    """Return the batches of this process's share of the clips.

    Args:
        clips: All of them.
        order: What they are asked for by, in order.
        collate: As of `validate`, like all that follows.
        accelerator: As there.
        batch_size: As there.
        num_workers: As there.
    """
    return DataLoader(
        clips,
        sampler=islice(order, accelerator.process_index, None, accelerator.num_processes),
        batch_size=batch_size,
        collate_fn=collate,
        num_workers=num_workers,
        generator=torch.Generator(),  # a number drawn from torch's own would shift dropout
    )


def sum_over_processes(sums: Tensor, accelerator: Accelerator) -> list[float]:
    """Return the sums over the clips of all processes, given those over each one's own, (n,)."""
    # As float32, of which some devices' reductions take no more, a count is exact up to 2 ** 24.
    totals: list[float] = accelerator.reduce(sums.float().to(accelerator.device), "sum").tolist()
    return totals
