"""The rows that benchmarks.objectives compares: read from YAML, and made into commands."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from transformers import AutoConfig

import score
import train
from benchmarks import log_mel
from benchmarks.encoder_sizes import config_values
from benchmarks.quickstart import ROOT
from nearfar.arguments import parse_arguments
from nearfar.files import read_yaml
from nearfar.in_process import as_words

PRETRAINED, RANDOM, NOISE_AWARE = ENCODERS = ("pretrained", "random", "noise_aware")

OWN_KEYS = ("recipe", "encoder", "networks")  # of a row, beside train.py's arguments
Commands = list[tuple[ModuleType, list[Any]]]


@dataclass(frozen=True)
class Row:
    """A system of a table.

    Attributes:
        values: Arguments of `script`, all but paths and seed.
        encoder: Of ENCODERS, or "" for none.
        script: train.py or benchmarks.log_mel.
        networks: Rows of one name here train the same networks; "" is a row's own.
    """

    values: dict[str, Any]
    encoder: str
    script: ModuleType
    networks: str = ""

    def check(self) -> None:
        """Raise ValueError where the script does not take a value."""
        words = as_words(self.values | {"data_dir": "data", "output_dir": "output"})
        arguments = train.TrainArguments if self.script is train else log_mel.LogMelArguments
        parse_arguments(arguments, words)

    def weights(self, encoders: Mapping[str, Path]) -> Path | None:
        """Return the folder of the encoder that the row starts from, or has the size of."""
        if not self.encoder:
            return None
        return encoders[PRETRAINED if self.encoder == RANDOM else self.encoder]

    def commands(
        self,
        *,
        data: Path,
        folder: Path,
        encoders: Mapping[str, Path],
        seed: int,
        networks: Path | None = None,
    ) -> Commands:
        """Return what to run one after the other; the last one writes `folder`/scores.

        Args:
            data: Recordings.
            folder: For the run and its scores.
            encoders: Of ENCODERS -> its folder; RANDOM has none.
            seed: Of the training.
            networks: Training states of the row's networks, if they are trained.
        """
        scores = ["--data_dir", data, "--output_dir", folder / "scores"]
        if self.script is not train:
            return [(self.script, [*as_words(self.values), *scores])]
        words = [
            *as_words(self.values),
            "--data_dir",
            data,
            "--output_dir",
            folder / "run",
            "--seed",
            seed,
        ]
        weights = self.weights(encoders)
        if self.encoder == RANDOM:
            config = config_values(AutoConfig.from_pretrained(weights))
            words += ["--encoder_config", json.dumps(config)]
        elif weights is not None:
            words += ["--encoder_checkpoint", weights]
        if networks is not None:
            words += ["--resume_from_checkpoint", networks]
        evaluate = ["--model", folder / "run", *scores, "--num_resamples", 0]
        return [(train, words), (score, evaluate)]


@dataclass(frozen=True)
class Table:
    """Rows that are compared with one of them, which another table may hold.

    Attributes:
        title: What stands above.
        against: Name of the row that the others are compared with.
        names: Of the rows, in order.
    """

    title: str
    against: str
    names: list[str]

    def only(self, names: Collection[str]) -> "Table":
        """Return the table without the rows that are not named."""
        return Table(self.title, self.against, [name for name in self.names if name in names])

    def with_reference(self) -> list[str]:
        """Return the names of all rows that are needed, that of `against` among them."""
        return list(dict.fromkeys([self.against, *self.names]))


def read_tables(paths: Sequence[Path]) -> tuple[list[Table], dict[str, Row]]:
    """Return the tables of files, and all their rows by name; a later file adds to an earlier one.

    Raises:
        FileNotFoundError: A file, or a row's recipe, is not there.
        ValueError: A file is not of the form of objectives.yaml, or train.py knows no such value.
    """
    shared: dict[str, Any] = {}
    headers: dict[str, dict[str, Any]] = {}
    given: dict[str, dict[str, Any]] = {}  # row -> its values
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"There is no file of tables {path}.")
        content = read_yaml(path, str(path))
        try:
            shared |= content.get("shared") or {}
            for key, table in content["tables"].items():
                header = headers.setdefault(key, {"rows": []})
                header |= {name: value for name, value in table.items() if name != "rows"}
                for name, values in table["rows"].items():
                    if name in given:
                        raise ValueError(f"{path}: there are two rows {name!r}. Rename one.")
                    given[name] = dict(values)
                    header["rows"].append(name)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is not a file of tables (at {error}). It has `tables`, each with `title`, "
                "`against` and `rows`, as benchmarks/objectives.yaml has."
            ) from error
    rows = {}
    for name, values in given.items():
        try:
            rows[name] = make_row(values, given, shared)
            rows[name].check()
        except ValueError as error:
            raise ValueError(f"Row {name!r}: {error}") from error
    tables = [
        Table(header.get("title", key), header.get("against", ""), header["rows"])
        for key, header in headers.items()
    ]
    for table in tables:
        if table.against not in rows:
            raise ValueError(
                f"Table {table.title!r} compares with {table.against!r}, which is no row. Set "
                "`against` to one."
            )
    return tables, rows


def make_row(
    values: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]], shared: Mapping[str, Any]
) -> Row:
    """Return the row that a file describes.

    Args:
        values: What the file says.
        others: Likewise of all rows, for `like`.
        shared: The file's.
    """
    values = dict(values)
    for _ in others:
        if "like" not in values:
            break
        like = values.pop("like")
        if like not in others:
            raise ValueError(f"like={like!r} is none of {list(others)}.")
        values = {**others[like], **values}
    if "log_mel" in values:
        return Row(dict(values["log_mel"]), "", log_mel)
    own = {key: value for key, value in values.items() if key not in OWN_KEYS}
    recipe: dict[str, Any] = {}
    if "recipe" in values:
        path = ROOT / "recipes" / f"{values['recipe']}.yaml"
        if not path.is_file():
            raise FileNotFoundError(f"There is no recipe {path.name} in {path.parent}.")
        recipe = read_yaml(path, f"Recipe {path}")
        recipe.pop("seed", None)  # the factory's
    if {**recipe, **own}.get("kind") == "autoencoder":
        return Row(recipe | own, "", train, values.get("networks", ""))
    encoder = values.get("encoder", PRETRAINED)
    if encoder not in ENCODERS:
        raise ValueError(f"encoder={encoder!r} is none of {list(ENCODERS)}.")
    return Row(recipe | dict(shared) | own, encoder, train, values.get("networks", ""))
