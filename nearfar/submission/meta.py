"""`<label>.meta.yaml`: who submits, what the system is, and how it did on the development set."""

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from nearfar.files import read_yaml

LABEL = re.compile(r"(?P<team>[^\W_]+(?:-[^\W_]+)*_[^\W_]+(?:-[^\W_]+)*)_task2_(?P<number>[0-9]+)")

_TEXT, _ANY, _COUNT = "text", "any", "count"
_DESCRIPTION = (
    "input_sampling_rate",
    "data_augmentation",
    "front_end",
    "acoustic_features",
    "embeddings",
    "machine_learning_method",
    "aggregation_method",
    "domain_adaptation_method",
    "domain_generalization_method",
    "ensemble_method_subsystem_count",
    "decision_making",
    "attribute_usage",
    "external_data_usage",
    "development_data_usage",
)
# Keys of 2026. A dict is a mapping with these keys, a list holds such entries, and a key in
# `_OPTIONAL` may be left out; "any" may be null.
_SCHEMA: dict[str, Any] = {
    "submission": {
        "label": _TEXT,
        "name": _TEXT,
        "abbreviation": _TEXT,
        "authors": [
            {
                "firstname": _TEXT,
                "lastname": _TEXT,
                "email": _TEXT,
                "corresponding": _ANY,
                "affiliation": {"institution": _TEXT, "department": _ANY, "location": _ANY},
            }
        ],
    },
    "system": {
        "description": dict.fromkeys(_DESCRIPTION, _ANY),
        "complexity": {"total_parameters": _COUNT, "MACS": _ANY},
        "external_datasets": [{"name": _TEXT, "url": _ANY}],
        "source_code": _ANY,
    },
    "results": {"development_dataset": {}},
}
_OPTIONAL = {"MACS", "corresponding", "department", "location"}
_METRICS = ("auc_source", "auc_target", "pauc")
_LONGEST_ABBREVIATION = 10


class _Dumper(yaml.SafeDumper):
    """Writes None as the challenge does: `!!null`."""


_Dumper.add_representer(
    type(None), lambda dumper, _: dumper.represent_scalar("tag:yaml.org,2002:null", "null")
)


def read_meta(path: Path) -> dict[str, Any]:
    """Read a YAML mapping, or raise ValueError naming the file."""
    meta = read_yaml(path, path.name)
    if not isinstance(meta, dict):
        raise ValueError(f"{path.name} must be a mapping with the keys {sorted(_SCHEMA)}.")
    return meta


def write_meta(path: Path, meta: Mapping[str, Any]) -> None:
    """Write meta data with null as `!!null`."""
    text = yaml.dump(dict(meta), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    path.write_text(re.sub(r"(?m)(:|^\s*-) null$", r"\1 !!null", text), encoding="utf-8")


def development_results(metrics: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return `results.development_dataset` in percent, from a score folder's `metrics.json`.

    Raises:
        ValueError: A machine lacks an official metric, or has several sections.
    """
    results: dict[str, dict[str, float]] = {}
    for machine, values in metrics["machines"].items():
        machine_type = machine.split("/")[1]
        if machine_type in results:
            raise ValueError(f"{machine_type} has several sections; meta data have room for one.")
        if lacking := [key for key in _METRICS if values.get(key) is None]:
            raise ValueError(
                f"{machine} has no {lacking} for the meta data. {values.get('reason', '')}"
            )
        results[machine_type] = {key: round(100 * values[key], 2) for key in _METRICS}
    return results


def meta_template() -> str:
    """Return meta data to fill in, without what `write` knows: the label and the results."""
    filled = {
        "submission": {
            "name": "",
            "abbreviation": "",
            "authors": [_blank(_SCHEMA["submission"]["authors"][0])],
        },
        "system": _blank(_SCHEMA["system"]),
    }
    text = yaml.dump(filled, Dumper=_Dumper, sort_keys=False)
    return re.sub(r"(?m)(:|^\s*-) null$", r"\1 !!null", text)


def meta_faults(meta: Mapping[str, Any], *, label: str) -> list[str]:
    """Return a sentence on each fault of a system's meta data; empty if all is well.

    Args:
        meta: As read from the YAML file.
        label: Of the system's folder.
    """
    faults = _key_faults(meta, _SCHEMA, "")
    submission = _mapping(meta.get("submission"))
    if isinstance(submission.get("label"), str) and submission["label"] != label:
        faults.append(f"submission.label is {submission['label']!r}, but the folder is {label!r}.")
    abbreviation = submission.get("abbreviation")
    if isinstance(abbreviation, str) and len(abbreviation) > _LONGEST_ABBREVIATION:
        faults.append(
            f"submission.abbreviation {abbreviation!r} has {len(abbreviation)} characters; at most "
            f"{_LONGEST_ABBREVIATION} are allowed."
        )
    authors = submission.get("authors")
    if isinstance(authors, list):
        if not authors:
            faults.append("submission.authors is empty; name at least one.")
        elif not any(_mapping(author).get("corresponding") for author in authors):
            faults.append("submission.authors has no one with `corresponding: true`.")
    results = _mapping(_mapping(meta.get("results")).get("development_dataset"))
    if not results and "results" in meta:
        faults.append("results.development_dataset names no machine; give each one's metrics.")
    for machine_type, values in results.items():
        faults += _result_faults(f"results.development_dataset.{machine_type}", values)
    return faults


def _key_faults(value: Any, schema: Any, where: str) -> list[str]:  # noqa: ANN401 - any YAML
    if isinstance(schema, dict):
        if not isinstance(value, Mapping):
            return [f"{where or 'The file'} must be a mapping, got {value!r}."]
        if not schema:  # machines, which are checked apart
            return []
        faults = []
        for key in value:
            if key not in schema:
                near = difflib.get_close_matches(str(key), schema, n=1, cutoff=0.5)
                hint = f" Did you mean {near[0]!r}?" if near else ""
                faults.append(f"{_at(where, key)} is an unknown key.{hint}")
        for key, inner in schema.items():
            if key in value:
                faults += _key_faults(value[key], inner, _at(where, key))
            elif key not in _OPTIONAL:
                faults.append(f"{_at(where, key)} is missing.")
        return faults
    if isinstance(schema, list):
        if value is None and where.endswith("external_datasets"):
            return []
        if not isinstance(value, Sequence) or isinstance(value, str):
            return [f"{where} must be a list, got {value!r}."]
        entries = (_key_faults(v, schema[0], f"{where}[{i}]") for i, v in enumerate(value))
        return [fault for faults in entries for fault in faults]
    if schema == _TEXT and (not isinstance(value, str) or not value.strip()):
        return [f"{where} must be text, got {value!r}."]
    if schema == _COUNT and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        return [f"{where} must be a whole number, got {value!r}."]
    return []


def _result_faults(where: str, values: Any) -> list[str]:  # noqa: ANN401 - any YAML
    if not isinstance(values, Mapping) or sorted(values) != sorted(_METRICS):
        return [f"{where} must have the keys {list(_METRICS)}, got {values!r}."]
    numbers = [v for v in values.values() if isinstance(v, int | float) and not isinstance(v, bool)]
    if any(not 0 <= v <= 100 for v in numbers) or len(numbers) < len(
        [v for v in values.values() if v is not None]
    ):
        return [f"{where} must have percentages or null, got {dict(values)!r}."]
    if numbers and max(numbers) <= 1:
        return [f"{where} has values up to {max(numbers)}; they are percentages: times 100."]
    return []


def _blank(schema: Any) -> Any:  # noqa: ANN401 - a part of the schema
    if isinstance(schema, dict):
        return {key: _blank(inner) for key, inner in schema.items()}
    if isinstance(schema, list):
        return []
    return {_TEXT: "", _COUNT: 0}.get(schema)


def _mapping(value: Any) -> Mapping[str, Any]:  # noqa: ANN401 - any YAML
    return value if isinstance(value, Mapping) else {}


def _at(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)
