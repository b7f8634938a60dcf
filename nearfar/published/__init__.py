"""What others published of the development set of DCASE 2026 Task 2, to reproduce: data files.

`systems.yaml` has the systems and the training-free ladder, `machines.csv` their figures per
machine in percent, as the reports print them.
"""

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nearfar.files import read_yaml

FOLDER = Path(__file__).resolve().parent
# Definition -> what the metrics of a machine are called in metrics.json, in the order of METRICS.
DEFINITIONS = {
    "official": ("auc_source", "auc_target", "pauc"),
    "within_domain": ("within_domain_auc_source", "within_domain_auc_target", "pauc"),
}
METRICS = DEFINITIONS["official"]


@dataclass(frozen=True, kw_only=True)
class PublishedSystem:
    """A system and its published figures, in 0..1.

    Attributes:
        name: Unique.
        source: Who printed the figures, and where.
        recipe: Name of the recipe that is meant to give them.
        official_score: Of the development set; None where it was not printed.
        title: What it is; of a rung of the ladder, what it changes.
        is_rung: Whether it is a rung of the training-free ladder.
        values: That win over those of the recipe.
        definition: Of the metrics per machine, a key of `DEFINITIONS`.
        machines: Machine -> source AUC, target AUC, pAUC; empty where none were printed.
    """

    name: str
    source: str
    recipe: str
    official_score: float | None
    title: str = ""
    is_rung: bool = False
    values: dict[str, Any] = field(default_factory=dict)
    definition: str = "official"
    machines: dict[str, tuple[float, ...]] = field(default_factory=dict)


def read_published() -> dict[str, PublishedSystem]:
    """Return the systems by name, the ladder first, rung by rung."""
    content = read_yaml(FOLDER / "systems.yaml", "The published systems")
    machines: dict[str, dict[str, tuple[float, ...]]] = {}
    with (FOLDER / "machines.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            of_system = machines.setdefault(row["system"], {})
            of_system[row["machine"]] = tuple(float(row[key]) / 100 for key in METRICS)
    systems = {}
    for part in ("ladder", "systems"):
        for name, entry in content[part].items():
            score = entry["official_score"]
            systems[name] = PublishedSystem(
                name=name,
                is_rung=part == "ladder",
                machines=machines.get(name, {}),
                **(entry | {"official_score": None if score is None else score / 100}),
            )
    return systems


def checkpoint_names() -> dict[str, list[str]]:
    """Return model type -> names of files or folders with an encoder's weights, the best first."""
    content = read_yaml(FOLDER / "systems.yaml", "The published systems")
    names: dict[str, list[str]] = content["checkpoints"]
    return names


__all__ = ["DEFINITIONS", "METRICS", "PublishedSystem", "checkpoint_names", "read_published"]
