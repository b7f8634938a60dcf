"""Speed of scoring: `python -m benchmarks.scoring --output_dir runs/scoring`.

Clips are scored by the mean Euclidean distance to their nearest references, by our detector, by
scikit-learn's NearestNeighbors and, where it is installed, by FAISS (exact, IndexFlatL2), in turn,
on the same embeddings. All must find the same neighbours, or the benchmark stops. A line for each
number of references and of clips per call: milliseconds per call, and how many times longer the
others take. What is measured is not measured again.
"""

import logging
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from modeling.detectors import KnnDetector
from nearfar.arguments import check_names, parse_arguments, script
from nearfar.files import read_json, write_json

try:
    import faiss
except ImportError:  # the others are compared without it
    faiss = None

logger = logging.getLogger(__name__)

Array = NDArray[np.float32]
# Embeddings (M, size) -> indices and Euclidean distances of the k nearest references, (M, k) each
Search = Callable[[Array], tuple[NDArray[np.int64], NDArray[np.floating]]]


@dataclass(kw_only=True)
class ScoringArguments:
    """Arguments of benchmarks.scoring."""

    output_dir: Path = field(metadata={"help": "Holds one file per measurement."})
    references: list[int] = field(
        default_factory=lambda: [1_000, 10_000, 100_000],
        metadata={"help": "Sizes of the bank; a million of 768 takes 7 GB."},
    )
    batch_sizes: list[int] = field(default_factory=lambda: [1, 64])
    peers: list[str] = field(
        default_factory=lambda: [name for name in PEERS if name != "faiss" or faiss is not None],
        metadata={"help": "Of sklearn, faiss."},
    )
    size: int = field(default=768, metadata={"help": "Of an embedding."})
    neighbors: int = field(default=5, metadata={"help": "k."})
    repetitions: int = field(default=7, metadata={"help": "Timed turns; medians count."})


def sklearn_search(references: Array, k: int) -> Search:
    """Return scikit-learn's exact search."""
    index = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(references)

    def search(clips: Array) -> tuple[NDArray[np.int64], NDArray[np.floating]]:
        distances, found = index.kneighbors(clips)
        return found, distances

    return search


def faiss_search(references: Array, k: int) -> Search:
    """Return FAISS's exact search."""
    if faiss is None:
        raise ImportError("--peers faiss needs FAISS: pip install faiss-cpu.")
    index = faiss.IndexFlatL2(references.shape[1])
    index.add(references)

    def search(clips: Array) -> tuple[NDArray[np.int64], NDArray[np.floating]]:
        squares, found = index.search(clips, k)
        return found, np.sqrt(np.maximum(squares, 0))

    return search


PEERS: dict[str, Callable[[Array, int], Search]] = {
    "sklearn": sklearn_search,
    "faiss": faiss_search,
}


def main() -> None:
    """Measure what is not there yet, then print the table."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    args = parse_arguments(ScoringArguments)
    check_names("peers", args.peers, PEERS)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    versions = f"torch {torch.__version__}, scikit-learn {sklearn.__version__}"
    versions += "" if faiss is None else f", faiss {faiss.__version__}"
    print(
        f"{versions}, {platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads, {args.neighbors} nearest of float32 embeddings of "
        f"{args.size}"
    )
    rows = [row for count in args.references for row in rows_of(count, args)]
    print(format_rows(rows, args.peers))


def rows_of(count: int, args: ScoringArguments) -> list[dict[str, Any]]:
    """Return a row per batch size, for one number of references."""
    words = ["with", *sorted(args.peers), f"{args.neighbors}nn", f"{args.size}.json"]
    paths = {
        batch_size: args.output_dir / "_".join([f"{count}_by_{batch_size}", *words])
        for batch_size in args.batch_sizes
    }
    missing = [batch_size for batch_size, path in paths.items() if not path.is_file()]
    if missing:
        references = embeddings(count, args.size, seed=0)
        detector = KnnDetector(num_neighbors=args.neighbors, metric="euclidean", per_domain=False)
        detector.fit(torch.from_numpy(references)[:, None, None])
        searches = {name: PEERS[name](references, args.neighbors) for name in args.peers}
        for batch_size in missing:
            logger.info("%d references, %d clips per call", count, batch_size)
            clips = embeddings(batch_size, args.size, seed=1)
            check_neighbors(detector, searches, clips, k=args.neighbors)
            times = measure(detector, searches, clips, repetitions=args.repetitions)
            write_json(
                paths[batch_size],
                {"references": count, "batch_size": batch_size, "milliseconds": times},
            )
    return [read_json(path) for path in paths.values()]


def embeddings(count: int, size: int, *, seed: int) -> Array:
    """Return embeddings (count, size), always the same."""
    return np.random.default_rng(seed).standard_normal((count, size), dtype=np.float32)


def check_neighbors(
    detector: KnnDetector, searches: Mapping[str, Search], clips: Array, *, k: int
) -> None:
    """Raise ValueError unless all find the same neighbours and, to 1e-4, the same scores."""
    embedding = torch.from_numpy(clips)[:, None, None]
    found = detector.nearest(embedding, k)[0].numpy()
    scores = detector.anomaly_score(embedding).numpy()
    for name, search in searches.items():
        others, distances = search(clips)
        if not np.array_equal(found, others):
            wrong = int((found != others).any(axis=1).sum())
            raise ValueError(f"{name} finds other neighbours for {wrong} of {len(clips)} clips.")
        if not np.allclose(scores, distances.mean(axis=1), rtol=1e-4):
            raise ValueError(f"{name} finds the same neighbours, but at other distances.")


def measure(
    detector: KnnDetector, searches: Mapping[str, Search], clips: Array, *, repetitions: int
) -> dict[str, float]:
    """Return the median milliseconds of one call, for each; all have run once before."""
    embedding = torch.from_numpy(clips)[:, None, None]
    calls: dict[str, Callable[[], object]] = {"ours": lambda: detector.anomaly_score(embedding)}
    for name, search in searches.items():
        calls[name] = lambda search=search: search(clips)[1].mean(axis=1)  # type: ignore[misc]  # bound now
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repetitions):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def format_rows(rows: Sequence[Mapping[str, Any]], peers: Sequence[str]) -> str:
    """Return the table; a ratio above 1 means that ours is faster."""
    lines = [
        f"{'references':>10}{'clips':>7}{'ours':>11}"
        + "".join(f"{name:>12}{'ratio':>8}" for name in peers)
    ]
    for row in rows:
        times = row["milliseconds"]
        line = f"{row['references']:>10}{row['batch_size']:>7}{times['ours']:>8.2f} ms"
        for name in peers:
            line += f"{times[name]:>9.2f} ms{times[name] / times['ours']:>8.2f}"
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    script(main)
