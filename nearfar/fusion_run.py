"""The run folder of a fusion: its members whole inside it, their weights, and a card."""

import importlib.resources
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import yaml

from nearfar.calibration_card import false_alarm_section
from nearfar.evaluation import METRICS_FILE
from nearfar.false_alarms import untouched_false_alarms
from nearfar.files import read_json, whole_folder, write_json
from nearfar.fused_scores import Calibrated
from nearfar.fusion import ScoreFusion
from nearfar.fusion_config import FusionConfig
from nearfar.hub import FORMAT_VERSION, RUN_FILE, read_run
from nearfar.licenses import card_license, members_metadata, members_section

FUSION_FILE = "fusion.json"
MEMBERS_FOLDER = "members"
_LEFT_OUT = shutil.ignore_patterns("trainer_state", ".partial_*")


def write_fusion_run(
    folder: Path,
    members: Sequence[Path],
    fusion: ScoreFusion,
    *,
    search: Mapping[str, Any] | None = None,
    recipe: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    calibrations: Mapping[str, Calibrated] | None = None,
) -> None:
    """Write a run folder of kind "fusion", complete in itself.

    A member's files are hard links where the file system allows it, so they take no room twice;
    training a member again writes new files and leaves these as they are.

    Args:
        folder: The run folder.
        members: Run folders, in the order of the weights.
        fusion: Its weights and normalisation; the scale of a member is found from the member's
            own calibration clips when it is loaded.
        search: How the weights were found, `WeightSearch.describe`; None for stated ones.
        recipe: The fusion's own arguments, where train.py made it.
        metrics: What `metrics.json` holds beside false alarms.
        calibrations: Of each machine, by fused scores, for the false alarms in the card.
    """
    _check_members(members)
    blank: dict[str, Any] = {"official_score": None, "machines": {}, "seed": None, "recipe": None}
    values: dict[str, Any] = {**blank, **(metrics or {})}
    calibrations = calibrations or {}
    alarms = [row._asdict() for row in untouched_false_alarms(calibrations)]
    origins = {(calibration.rule or {}).get("scores", "") for calibration in calibrations.values()}
    tuned_folds = not values.get("frozen_encoder") and any("cross_fitted" in o for o in origins)
    values["false_alarms"] = alarms
    with whole_folder(folder, last=RUN_FILE) as partial:
        names = _write_members(partial, members, kind="fusion", recipe=recipe, metrics=values)
        write_fusion(partial, names, fusion, search=search)
        false_alarms = false_alarm_section(alarms, tuned_folds=tuned_folds)
        card = _card(names, fusion, search, false_alarms, _licenses(names, members))
        (partial / "README.md").write_text(card, encoding="utf-8")


def write_feature_fusion_run(
    folder: Path,
    members: Sequence[Path],
    bank: Any,  # noqa: ANN401 - a ReferenceBank, which nearfar must not import
    *,
    recipe: Mapping[str, Any],
    metrics: Mapping[str, Any],
    thresholds: Mapping[str, float | None],
) -> None:
    """Write a run folder of kind "feature_fusion": its members whole inside it, and one bank.

    Args:
        folder: The run folder.
        members: Run folders, in the order in which their embeddings are joined.
        bank: Of the joined embeddings.
        recipe: The fusion's own arguments.
        metrics: What `metrics.json` holds.
        thresholds: Per machine, for the card; None where there is none.
    """
    _check_members(members)
    with whole_folder(folder, last=RUN_FILE) as partial:
        names = _write_members(
            partial, members, kind="feature_fusion", recipe=recipe, metrics=metrics
        )
        bank.save_pretrained(partial)
        template = importlib.resources.files("nearfar").joinpath("feature_fusion_card_template.md")
        card = Template(template.read_text(encoding="utf-8")).substitute(
            **_licenses(names, members),
            members="\n".join(f"- `{MEMBERS_FOLDER}/{name}`" for name in names),
            detector=bank.detector,
            num_references=metrics["num_references"],
            num_calibration=metrics["num_calibration"],
            threshold_rule=bank.threshold_name,
            threshold_quantile=bank.threshold_quantile,
            thresholds="\n".join(
                f"| {machine} | {'none' if value is None else f'{value:.4f}'} |"
                for machine, value in sorted(thresholds.items())
            ),
        )
        (partial / "README.md").write_text(card, encoding="utf-8")


def _check_members(members: Sequence[Path]) -> None:
    """Raise unless all of them are run folders, before anything is written."""
    for member in members:
        read_run(member)


def _write_members(
    folder: Path,
    members: Sequence[Path],
    *,
    kind: str,
    recipe: Mapping[str, Any] | None,
    metrics: Mapping[str, Any],
) -> list[str]:
    """Write the members and what every fusion has; return the names of the members' folders."""
    names = [f"{number}_{member.resolve().name}" for number, member in enumerate(members, start=1)]
    for member, name in zip(members, names, strict=True):
        shutil.copytree(
            member, folder / MEMBERS_FOLDER / name, copy_function=_link, ignore=_LEFT_OUT
        )
    if recipe is not None:
        text = yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)
        (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    write_json(folder / METRICS_FILE, metrics)
    paths = [f"{MEMBERS_FOLDER}/{name}" for name in names]
    described = {"format_version": FORMAT_VERSION, "kind": kind, "members": paths}
    write_json(folder / RUN_FILE, described)
    FusionConfig(members=paths).save_pretrained(folder)
    return names


def write_fusion(
    folder: Path,
    members: Sequence[str],
    fusion: ScoreFusion,
    *,
    search: Mapping[str, Any] | None = None,
) -> None:
    """Write fusion.json: which members, with which weights, found how."""
    described = {
        "format_version": FORMAT_VERSION,
        "members": list(members),
        "weights": list(fusion.weights),
        "normalization": fusion.normalization,
        "combination": fusion.combination,
        "search": search,
    }
    write_json(folder / FUSION_FILE, described)


def read_fusion(folder: Path) -> tuple[ScoreFusion, dict[str, Any] | None]:
    """Return the fusion of a run or score folder, not fitted, and how its weights were found.

    Raises:
        FileNotFoundError: There is no fusion.json.
        ValueError: It is damaged, or its weights cannot be used.
    """
    path = folder / FUSION_FILE
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}. Make it with score.py --fuse.")
    try:
        described = read_json(path)
        fusion = ScoreFusion(
            described["weights"],
            normalization=described["normalization"],
            combination=described.get("combination", "sum"),  # older ones know no other
        )
        return fusion, described["search"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a fusion ({error!r}). Make it anew.") from error


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)
    return target


def _card(
    names: Sequence[str],
    fusion: ScoreFusion,
    search: Mapping[str, Any] | None,
    false_alarms: str,
    licenses: Mapping[str, str],
) -> str:
    template = importlib.resources.files("nearfar").joinpath("fusion_card_template.md")
    rows = [
        f"| `{MEMBERS_FOLDER}/{name}` | {weight:.4g} |"
        for name, weight in zip(names, fusion.weights, strict=True)
    ]
    found = "The weights were stated, not searched."
    if fusion.combination == "minimum":
        found = "The smallest of the scores counts, so the weights decide nothing."
    if search is not None:
        nested, optimistic = (search[key]["estimate"] for key in ("nested", "optimistic"))
        found = (
            f"The weights were searched ({search['method']}) on labelled development clips, the "
            f"only use of labels. Leaving each machine out of the search for its own weights: "
            f"official score {100 * nested:.2f}; on the machines that chose the weights: "
            f"{100 * optimistic:.2f}, which is optimistic."
        )
    return Template(template.read_text(encoding="utf-8")).substitute(
        num_members=len(names),
        members="\n".join(rows),
        normalization=fusion.normalization,
        combined="weighted sum" if fusion.combination == "sum" else "minimum",
        found=found,
        false_alarms=false_alarms,
        **licenses,
    )


def _licenses(names: Sequence[str], members: Sequence[Path]) -> dict[str, str]:
    """Return what the card says of the members' licences, as its template calls it."""
    stated = {
        f"{MEMBERS_FOLDER}/{name}": card_license(member)
        for name, member in zip(names, members, strict=True)
    }
    return {"license": members_metadata(stated.values()), "licenses": members_section(stated)}
