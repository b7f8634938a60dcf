"""Embeddings of clips as one table, and the only place that computes them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from tqdm.auto import tqdm

from nearfar.clip_streams import ClipStream
from nearfar.clip_table import ClipTable
from nearfar.schema import resolve_machine

CLIP_FIELDS = ("file_name", "machine", "domain", "condition", "attributes")


@dataclass(frozen=True, eq=False)
class EmbeddingTable(ClipTable):
    """Embeddings with what is known of their clips; row i of every column is clip i.

    Attributes:
        embedding: (N, views, bands, size) float32.
        file_names: (N,) str, unique within a machine and split.
        machines: (N,) str, full names such as "2026/fan/00".
        domains: (N,) "source", "target" or None where unknown.
        conditions: (N,) "normal", "anomaly" or None where unknown.
        attributes: (N,) str, "" where the name gives none.
    """

    embedding: NDArray[np.float32]
    file_names: NDArray[np.object_]
    machines: NDArray[np.object_]
    domains: NDArray[np.object_]
    conditions: NDArray[np.object_]
    attributes: NDArray[np.object_]

    def __post_init__(self) -> None:
        lengths = {len(column) for column in vars(self).values()}
        if len(lengths) != 1 or self.embedding.ndim != 4:
            shapes = {name: np.shape(column) for name, column in vars(self).items()}
            raise ValueError(
                f"Every column must describe the same clips and embedding must be "
                f"(N, views, bands, size), got {shapes}."
            )

    @classmethod
    def from_clips(cls, embedding: NDArray[np.float32], clips: Sequence[Mapping[str, Any]]) -> Self:
        """Join embeddings (N, views, bands, size) and N rows that hold `CLIP_FIELDS`."""
        columns = {name: _object_array([clip[name] for clip in clips]) for name in CLIP_FIELDS}
        return cls(
            embedding=embedding,
            file_names=columns["file_name"],
            machines=columns["machine"],
            domains=columns["domain"],
            conditions=columns["condition"],
            attributes=columns["attributes"],
        )

    def select(self, machine: str) -> Self:
        """Return the clips of one machine: "2026/fan/00", or "fan" where that is unambiguous."""
        return self.take(self.machines == resolve_machine(machine, self.machine_names))


class Embedded(NamedTuple):
    """The least that a model of `extract_embeddings` returns: (batch, views, bands, size)."""

    embedding: Tensor


@runtime_checkable
class _MapStyle(Protocol):
    """Clips by position, such as a list or a `datasets.Dataset`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


class _IndexedClips(Dataset[tuple[int, dict[str, Any]]]):
    """Some clips of a dataset, each with its index."""

    def __init__(self, clips: _MapStyle, indices: Sequence[int]) -> None:
        self.clips = clips
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[int, dict[str, Any]]:
        index = self.indices[position]
        return index, self.clips[index]


class _StreamedClips(IterableDataset[tuple[int, dict[str, Any]]]):
    """Every `step`-th clip of a stream, from `start` on, each with its index."""

    def __init__(self, clips: Iterable[dict[str, Any]], start: int, step: int) -> None:
        self.clips = clips
        self.start = start
        self.step = step

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        return islice(enumerate(self.clips), self.start, None, self.step)


def model_inputs(rows: Sequence[Mapping[str, Any]], feature_extractor: Any) -> dict[str, Any]:  # noqa: ANN401 - an AsdFeatureExtractor, which nearfar must not import
    """Batch decoded rows for an `AsdModel`.

    Args:
        rows: Rows with `near` (num_samples,) float32 and `far`, the same or None.
        feature_extractor: An `AsdFeatureExtractor`, or what is called like it.

    Raises:
        ValueError: A clip cannot be used; the message begins with its name.
    """
    near, far = [row["near"] for row in rows], [row["far"] for row in rows]
    rate = feature_extractor.sampling_rate
    try:
        return dict(feature_extractor(near, far, sampling_rate=rate, return_tensors="pt"))
    except ValueError:
        for row in rows:  # again one by one, to name the clip
            try:
                feature_extractor(row["near"], row["far"], sampling_rate=rate)
            except ValueError as error:
                raise ValueError(f"{row['machine']}/{row['file_name']}: {error}") from error
        raise


@torch.inference_mode()
def extract_embeddings(
    model: nn.Module,
    clips: _MapStyle | ClipStream | Iterable[dict[str, Any]],
    feature_extractor: Any,  # noqa: ANN401 - see model_inputs
    *,
    batch_size: int = 8,
    accelerator: Accelerator | None = None,
    front_end_strength: Mapping[str, float] | None = None,
    num_workers: int = 0,
    description: str = "embedding",
) -> EmbeddingTable:
    """Embed clips with an `AsdModel`; memory is bounded by the batch plus the result.

    Under several processes each embeds its share, and every process returns the whole table in the
    clips' order.

    Args:
        model: Called like `AsdModel.forward`; its `embedding` is (batch, views, bands, size). With
            an attribute `reads_machines` that is true it also gets `machines`, each clip's.
        clips: Decoded rows: map-style; a `ClipStream`, whose shards processes and workers share; or
            any iterable, of which every process reads all.
        feature_extractor: The model's `AsdFeatureExtractor`.
        batch_size: Clips per forward pass.
        accelerator: Gives the device and the processes; None takes the model's device (the
            CPU for one without weights), alone.
        front_end_strength: The guard's decision per machine, in [0, 1]; a machine left out has 1.
        num_workers: Processes that decode ahead, but for a plain iterable.
        description: What the progress bar says.

    Raises:
        ValueError: There are no clips, one cannot be used, or a stream gave others than due.
    """
    rank = accelerator.process_index if accelerator else 0
    world = accelerator.num_processes if accelerator else 1
    own = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    device = accelerator.device if accelerator else own
    strengths = front_end_strength or {}

    def collate(pairs: list[tuple[int, dict[str, Any]]]) -> tuple[list[Any], dict[str, Any]]:
        rows = [row for _, row in pairs]
        known = [(index, {name: row[name] for name in CLIP_FIELDS}) for index, row in pairs]
        return known, model_inputs(rows, feature_extractor)

    dataset: Dataset[Any]
    total: int | None = None
    if isinstance(clips, _MapStyle):
        dataset = _IndexedClips(clips, range(rank, len(clips), world))
        total = len(dataset)
    elif isinstance(clips, ClipStream):
        dataset = clips.share(rank, world)
        total = len(clips) if world == 1 else None
    else:
        dataset, num_workers = _StreamedClips(clips, rank, world), 0
    loader = DataLoader(dataset, batch_size=batch_size, collate_fn=collate, num_workers=num_workers)
    embedded: list[tuple[int, dict[str, Any]]] = []
    vectors = np.empty((0, 0, 0, 0), dtype=np.float32)
    model.to(device)
    with (
        evaluation_mode(model),
        tqdm(total=total, desc=description, unit="clip", disable=rank > 0) as bar,
    ):
        for known, inputs in loader:
            machines = [clip["machine"] for _, clip in known]
            named = {"machines": machines} if getattr(model, "reads_machines", False) else {}
            output = model(
                near_values=inputs["near_values"].to(device),
                far_values=inputs["far_values"].to(device),
                attention_mask=inputs["attention_mask"].to(device),
                front_end_strength=torch.tensor(
                    [strengths.get(machine, 1.0) for machine in machines], device=device
                ),
                has_far=inputs["has_far"].to(device),
                **named,
            )
            batch = output.embedding.float().cpu().numpy()
            count = len(embedded)
            embedded += known
            if len(embedded) > len(vectors):
                # One large array: a small one kept for each batch would pin the freed memory of
                # that batch's clips.
                larger = np.empty((total or 2 * len(embedded), *batch.shape[1:]), dtype=np.float32)
                if count:
                    larger[:count] = vectors
                vectors = larger
            vectors[count : len(embedded)] = batch
            bar.update(len(known))
    vectors = vectors[: len(embedded)]
    if world > 1:
        shares = gather_object([(embedded, vectors)])
        embedded = [item for items, _ in shares for item in items]
        vectors = np.concatenate([share for items, share in shares if items] or [vectors])
    if isinstance(clips, ClipStream):
        clips.check_count(len({index for index, _ in embedded}))
    if not embedded:
        raise ValueError("There are no clips to embed. Check data_dir, machine_types and subsets.")
    order = np.argsort([index for index, _ in embedded])
    return EmbeddingTable.from_clips(vectors[order], [embedded[i][1] for i in order])


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and every part of it back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _object_array(values: Sequence[Any]) -> NDArray[np.object_]:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
