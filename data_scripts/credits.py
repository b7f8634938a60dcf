"""Whom the recordings of each year are owed to, and under which licence they were published."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

UNKNOWN_LICENSE = "unknown"  # the Hub's identifier of it
LICENSE_URLS = {
    "cc-by-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "cc-by-nc-4.0": "https://creativecommons.org/licenses/by-nc/4.0/",
    "cc-by-nc-sa-4.0": "https://creativecommons.org/licenses/by-nc-sa/4.0/",
    "cc-by-sa-4.0": "https://creativecommons.org/licenses/by-sa/4.0/",
    "cc0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
}

# (year, subset) -> licence, as far as it is known here; what is missing has to be read up.
_LICENSES = {
    (2020, "dev"): "cc-by-nc-sa-4.0",
    (2023, "dev"): "cc-by-4.0",
    (2024, "dev"): "cc-by-4.0",
    (2025, "dev"): "cc-by-4.0",
    (2026, "eval_train"): "cc-by-nc-sa-4.0",
    (2026, "eval_test"): "cc-by-nc-sa-4.0",
}


class TaskPaper(NamedTuple):
    """The organisers' description of one year's task and data."""

    first_author: str
    title: str
    arxiv: str


TASK_PAPERS = {
    2020: TaskPaper(
        "Koizumi, Yuma",
        "Description and discussion on {DCASE2020} challenge task2: Unsupervised anomalous sound "
        "detection for machine condition monitoring",
        "2006.05822",
    ),
    2021: TaskPaper(
        "Kawaguchi, Yohei",
        "Description and discussion on {DCASE} 2021 challenge task 2: Unsupervised anomalous sound "
        "detection for machine condition monitoring under domain shifted conditions",
        "2106.04492",
    ),
    2022: TaskPaper(
        "Dohi, Kota",
        "Description and discussion on {DCASE} 2022 challenge task 2: Unsupervised anomalous sound "
        "detection for machine condition monitoring applying domain generalization techniques",
        "2206.05876",
    ),
    2023: TaskPaper(
        "Dohi, Kota",
        "Description and discussion on {DCASE} 2023 challenge task 2: First-shot unsupervised "
        "anomalous sound detection for machine condition monitoring",
        "2305.07828",
    ),
    2024: TaskPaper(
        "Nishida, Tomoya",
        "Description and discussion on {DCASE} 2024 challenge task 2: First-shot unsupervised "
        "anomalous sound detection for machine condition monitoring",
        "2406.07250",
    ),
    2025: TaskPaper(
        "Nishida, Tomoya",
        "Description and discussion on {DCASE} 2025 challenge task 2: First-shot unsupervised "
        "anomalous sound detection for machine condition monitoring",
        "2506.10097",
    ),
    2026: TaskPaper(
        "Nishida, Tomoya",
        "Description and discussion on {DCASE} 2026 challenge task 2: Noise-aware unsupervised "
        "anomalous sound detection for machine condition monitoring",
        "2606.01578",
    ),
}


def license_of(year: int, subset: str) -> str | None:
    """Return the Hub's identifier of a subset's licence; None where it is not known here."""
    return _LICENSES.get((year, subset))


def licenses_of(year: int, subsets: Iterable[str], declared: Sequence[str] = ()) -> list[str]:
    """Return the licences of published subsets, sorted; `UNKNOWN_LICENSE` if one is not known.

    Args:
        year: Of the recordings.
        subsets: Of the challenge: "dev", "eval_train", "eval_test"; none of other recordings.
        declared: What the publisher says they are, which then counts.
    """
    found = declared or [license_of(year, subset) or UNKNOWN_LICENSE for subset in subsets]
    return sorted(set(found)) or [UNKNOWN_LICENSE]


def citation_of(year: int) -> str:
    """Return the BibTeX entry of a year's task paper."""
    paper = TASK_PAPERS[year]
    return (
        f"@misc{{dcase{year}task2,\n"
        f"  author = {{{paper.first_author} and others}},\n"
        f"  title = {{{paper.title}}},\n"
        f"  eprint = {{{paper.arxiv}}},\n"
        "  archivePrefix = {arXiv},\n"
        f"  year = {{{year}}}\n"
        "}"
    )


def homepage_of(year: int) -> str:
    """Return the address of a year's challenge."""
    return f"https://dcase.community/challenge{year}/"
