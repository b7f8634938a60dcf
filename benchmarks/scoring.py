"""Speed of scoring: `python -m benchmarks.scoring --output_dir runs/scoring`.

Clips are scored by the mean Euclidean distance to their nearest references, by our detector, by
our search where a matrix product or FAISS rules the far references out, by scikit-learn's
NearestNeighbors, and where they are installed by FAISS (exact, IndexFlatL2) and PyOD's KNN (up to
100,000 references), in turn, on the same embeddings, by one thread and by all. All must find the
same neighbours, or the benchmark stops. A line for each number of references, of clips per call and
of threads: milliseconds per call, and how many times longer the others take. What is measured is
not measured again. Last, how ours stands beside the fastest of the others where banks are large.
"""

import logging
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import sklearn
import torch
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from modeling.detectors import KnnDetector
from modeling.neighbor_search import Backend, ReferenceIndex
from nearfar.arguments import check_names, parse_arguments, script
from nearfar.files import read_json, write_json

try:
    import faiss
except ImportError:  # the others are compared without it
    faiss = None

logger = logging.getLogger(__name__)

PYOD_REFERENCES = 100_000  # of more, PyOD is not asked
LARGE = 10_000  # from so many references on ours is to be as fast as the fastest
LEAST_TURNS = 3

Array = NDArray[np.float32]


class Peer(NamedTuple):
    """A search that is compared with ours, on references of its own.

    Attributes:
        nearest: Embeddings (M, size) -> indices and Euclidean distances of the k nearest
            references, (M, k) each.
        score: Embeddings (M, size) -> mean distances (M,).
    """

    nearest: Callable[[Array], tuple[NDArray[np.int64], NDArray[np.floating]]]
    score: Callable[[Array], NDArray[np.floating]]


@dataclass(kw_only=True)
class ScoringArguments:
    """Arguments of benchmarks.scoring."""

    output_dir: Path = field(metadata={"help": "Holds one file per measurement."})
    references: list[int] = field(
        default_factory=lambda: [1_000, 10_000, 100_000, 1_000_000],
        metadata={"help": "Sizes of the bank; a million of 768 takes 7 GB."},
    )
    batch_sizes: list[int] = field(default_factory=lambda: [1, 64])
    threads: list[int] = field(
        default_factory=lambda: sorted({1, os.cpu_count() or 1}),
        metadata={"help": "Of every search; by default one, and one per core."},
    )
    peers: list[str] = field(
        default_factory=lambda: [
            name for name in PEERS if NEEDS.get(name) is None or find_spec(NEEDS[name])
        ],
        metadata={"help": "Of product_pass, faiss_pass (ours, by either), sklearn, faiss, pyod."},
    )
    size: int = field(default=768, metadata={"help": "Of an embedding."})
    neighbors: int = field(default=5, metadata={"help": "k."})
    repetitions: int = field(default=7, metadata={"help": "Timed turns; medians count."})
    max_seconds: float = field(
        default=120.0, metadata={"help": "After so long a row ends with fewer turns, 3 at least."}
    )


def our_search(references: Array, k: int, backend: Backend) -> Peer:
    """Return our exact search, with the backend that rules references out."""
    index = ReferenceIndex(
        torch.from_numpy(references)[:, None, None], "euclidean", backend=backend
    )

    def nearest(clips: Array) -> tuple[NDArray[np.int64], NDArray[np.floating]]:
        found, distances = index.nearest(torch.from_numpy(clips)[:, None, None], k)
        return found.numpy(), distances.numpy()

    return Peer(nearest, lambda clips: nearest(clips)[1].mean(axis=1))


def sklearn_search(references: Array, k: int) -> Peer:
    """Return scikit-learn's exact search."""
    index = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(references)
    return Peer(
        lambda clips: index.kneighbors(clips)[::-1],
        lambda clips: index.kneighbors(clips)[0].mean(axis=1),
    )


def faiss_search(references: Array, k: int) -> Peer:
    """Return FAISS's exact search."""
    if faiss is None:
        raise ImportError("--peers faiss needs FAISS: pip install faiss-cpu.")
    index = faiss.IndexFlatL2(references.shape[1])
    index.add(references)

    def nearest(clips: Array) -> tuple[NDArray[np.int64], NDArray[np.floating]]:
        squares, found = index.search(clips, k)
        return found, np.sqrt(np.maximum(squares, 0))

    return Peer(nearest, lambda clips: nearest(clips)[1].mean(axis=1))


def pyod_search(references: Array, k: int) -> Peer:
    """Return PyOD's KNN, ready to be queried.

    Its `fit` also scores each reference by all others, which is no part of what is measured: it
    sees a few of them, and only its search gets them all.
    """
    try:
        from pyod.models.knn import KNN
    except ImportError as error:
        raise ImportError("--peers pyod needs PyOD: pip install pyod.") from error
    model = KNN(n_neighbors=k, method="mean").fit(references[: 10 * k])
    model.neigh_.fit(references)
    return Peer(lambda clips: model.neigh_.kneighbors(clips)[::-1], model.decision_function)


PEERS: dict[str, Callable[[Array, int], Peer]] = {
    "product_pass": lambda references, k: our_search(references, k, "torch"),
    "faiss_pass": lambda references, k: our_search(references, k, "faiss"),
    "sklearn": sklearn_search,
    "faiss": faiss_search,
    "pyod": pyod_search,
}
OTHERS = ("sklearn", "faiss", "pyod")
NEEDS = {"faiss_pass": "faiss", "faiss": "faiss", "pyod": "pyod"}


def main() -> None:
    """Measure what is not there yet, then print the table."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    args = parse_arguments(ScoringArguments)
    check_names("peers", args.peers, PEERS)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    versions = f"torch {torch.__version__}, scikit-learn {sklearn.__version__}"
    versions += "" if faiss is None else f", faiss {faiss.__version__}"
    print(
        f"{versions}, {platform.machine()}, {os.cpu_count()} cores, {args.neighbors} nearest of "
        f"float32 embeddings of {args.size}"
    )
    rows = [row for count in args.references for row in rows_of(count, args)]
    print(format_rows(rows, args.peers))
    for line in format_verdict(rows):
        print(line)


def rows_of(count: int, args: ScoringArguments) -> list[dict[str, Any]]:
    """Return a row per batch size and number of threads, for one number of references."""
    peers = [name for name in args.peers if name != "pyod" or count <= PYOD_REFERENCES]
    words = ["with", *sorted(peers), f"{args.neighbors}nn", f"{args.size}.json"]
    paths = {
        (batch_size, threads): args.output_dir
        / "_".join([f"{count}_by_{batch_size}_on_{threads}", *words])
        for batch_size in args.batch_sizes
        for threads in args.threads
    }
    missing = [case for case, path in paths.items() if not path.is_file()]
    if missing:
        references = embeddings(count, args.size, seed=0)
        detector = KnnDetector(num_neighbors=args.neighbors, metric="euclidean", per_domain=False)
        detector.fit(torch.from_numpy(references)[:, None, None])
        searches = {name: PEERS[name](references, args.neighbors) for name in peers}
        for batch_size, threads in missing:
            logger.info("%d references, %d clips per call, threads: %d", count, batch_size, threads)
            clips = embeddings(batch_size, args.size, seed=1)
            with limited_to(threads):
                check_neighbors(detector, searches, clips, k=args.neighbors)
                times = measure(
                    detector,
                    searches,
                    clips,
                    repetitions=args.repetitions,
                    max_seconds=args.max_seconds,
                )
            row = {"references": count, "batch_size": batch_size, "threads": threads}
            write_json(paths[batch_size, threads], row | {"milliseconds": times})
    return [read_json(path) for path in paths.values()]


@contextmanager
def limited_to(threads: int) -> Iterator[None]:
    """Let every library compute with so many threads."""
    before = torch.get_num_threads()
    try:
        with threadpool_limits(threads):
            torch.set_num_threads(threads)
            yield
    finally:
        torch.set_num_threads(before)


def embeddings(count: int, size: int, *, seed: int) -> Array:
    """Return embeddings (count, size), always the same."""
    return np.random.default_rng(seed).standard_normal((count, size), dtype=np.float32)


def check_neighbors(
    detector: KnnDetector, searches: Mapping[str, Peer], clips: Array, *, k: int
) -> None:
    """Raise ValueError unless all find the same neighbours and, to 1e-4, the same scores."""
    embedding = torch.from_numpy(clips)[:, None, None]
    found = detector.nearest(embedding, k)[0].numpy()
    scores = detector.anomaly_score(embedding).numpy()
    for name, search in searches.items():
        others = search.nearest(clips)[0]
        if not np.array_equal(found, others):
            wrong = int((found != others).any(axis=1).sum())
            raise ValueError(f"{name} finds other neighbours for {wrong} of {len(clips)} clips.")
        if not np.allclose(scores, search.score(clips), rtol=1e-4):
            raise ValueError(f"{name} finds the same neighbours, but at other distances.")


def measure(
    detector: KnnDetector,
    searches: Mapping[str, Peer],
    clips: Array,
    *,
    repetitions: int,
    max_seconds: float,
) -> dict[str, float]:
    """Return the median milliseconds of one call, for each; all have run once before."""
    embedding = torch.from_numpy(clips)[:, None, None]
    calls: dict[str, Callable[[], object]] = {"ours": lambda: detector.anomaly_score(embedding)}
    for name, search in searches.items():
        calls[name] = lambda search=search: search.score(clips)  # type: ignore[misc]  # bound now
    times: dict[str, list[float]] = {name: [] for name in calls}
    begun = time.perf_counter()
    for turn in range(repetitions):
        if turn >= LEAST_TURNS and time.perf_counter() - begun > max_seconds:
            break
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def format_rows(rows: Sequence[Mapping[str, Any]], peers: Sequence[str]) -> str:
    """Return the table; a ratio above 1 means that ours is faster."""
    lines = [
        f"{'references':>10}{'clips':>7}{'threads':>9}{'ours':>12}"
        + "".join(f"{name:>14}{'ratio':>8}" for name in peers)
    ]
    for row in rows:
        times = row["milliseconds"]
        line = f"{row['references']:>10}{row['batch_size']:>7}{row['threads']:>9}"
        line += f"{times['ours']:>9.2f} ms"
        for name in peers:
            if name in times:
                line += f"{times[name]:>11.2f} ms{times[name] / times['ours']:>8.2f}"
            else:
                line += f"{'-':>14}{'-':>8}"
        lines.append(line)
    return "\n".join(lines)


def format_verdict(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each row of a large bank: how ours stands beside the fastest other."""
    lines = []
    for row in rows:
        times = row["milliseconds"]
        others = {name: times[name] for name in OTHERS if name in times}
        if row["references"] >= LARGE and others:
            fastest = min(others, key=others.__getitem__)
            lines.append(
                f"{row['references']} references, {row['batch_size']} clips, threads: "
                f"{row['threads']}: ours is {others[fastest] / times['ours']:.2f} times as fast as "
                f"the fastest other, {fastest}"
            )
    return lines


if __name__ == "__main__":
    script(main)
