"""The run folder: everything a published checkpoint is made of, written whole or not at all.

python -m nearfar.hub push runs/mine me/my-machines --private --tag v1
"""

import argparse
import importlib.resources
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import yaml

from nearfar.arguments import script
from nearfar.calibration_card import calibration_sentence, false_alarm_section
from nearfar.card_results import with_results
from nearfar.files import read_json, whole_folder, write_json
from nearfar.licenses import license_metadata, license_section
from nearfar.publishing import upload
from nearfar.space import add_commands

FORMAT_VERSION = 1
KINDS = ("model", "autoencoder", "fusion", "feature_fusion")
RUN_FILE = "run.json"
ADAPTER_FOLDER = "adapter"
AUTOENCODER_TYPE = "nearfar_autoencoder"  # model_type of an AutoencoderConfig
GUARD_TEXT = """\
`{front_end}` uses the far microphone, which hears the machine, too, so it may take what is listened
for. A guard, fitted on the references alone, falls back to the near microphone (strength 0) where
the front end takes more of near's stable spectral lines, which are the machine's, than of
the rest of the spectrum, and does not make up for it by bringing normal recordings nearer to each
other.

| machine | strength | taken of all | taken of lines | taken beside them | distances change by |
| --- | --- | --- | --- | --- | --- |
"""
MODEL_TEXT = """\
A {encoder} encoder ({num_layers} layers of size {hidden_size}; weights: {origin}; training:
{training}), the front end `{front_end}`, `{pooling}` pooling, the head `{head}` over {num_classes}
proxy classes and the detector `{detector}`."""
AUTOENCODER_TEXT = """\
A baseline of DCASE Task 2: for each machine an autoencoder of {frames} stacked log-mel frames of
{bins} bins (channel: {channels}; {num_parameters} parameters in all; {epochs} epochs), scored by
{scoring}."""
SCORINGS = {
    "mse": "the mean squared error of a clip",
    "mahalanobis": (
        "the squared Mahalanobis length of a clip's mean residual, by the covariance of source or\n"
        "of target residuals, whichever makes it smaller"
    ),
}


def write_run(
    folder: Path,
    *,
    model: Any,  # noqa: ANN401 - an AsdForProxyClassification, which nearfar must not import
    feature_extractor: Any,  # noqa: ANN401
    bank: Any,  # noqa: ANN401
    recipe: Mapping[str, Any],
    metrics: Mapping[str, Any],
    thresholds: Mapping[str, float | None],
    kind: str = "model",
    adapter: Any = None,  # noqa: ANN401 - a PeftModel, which nearfar must not import
) -> None:
    """Write a run folder: weights, code, extractor, bank, recipe, figures, card.

    Args:
        folder: The run folder; its `trainer_state/` is left alone.
        model: With `save_pretrained`; it writes its code and `config.json`, too.
        feature_extractor: With `save_pretrained`.
        bank: A `ReferenceBank`.
        recipe: All arguments as resolved.
        metrics: What `metrics.json` holds.
        thresholds: Per machine, for the card; None where there is none.
        kind: "model" or "autoencoder", as the model is.
        adapter: With `save_pretrained`; what LoRA added to the weights of `model`. It goes to a
            folder of its own: beside merged weights it would be added again on loading.
    """
    with whole_folder(folder, last=RUN_FILE) as partial:
        model.save_pretrained(partial)
        feature_extractor.save_pretrained(partial)
        bank.save_pretrained(partial)
        if adapter is not None:
            adapter.save_pretrained(partial / ADAPTER_FOLDER)
            (partial / ADAPTER_FOLDER / "README.md").unlink(missing_ok=True)  # PEFT's, all blanks
        recipe_text = yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True)
        (partial / "recipe.yaml").write_text(recipe_text, encoding="utf-8")
        write_json(partial / "metrics.json", metrics)
        card = model_card(model.config, recipe, metrics, thresholds)
        (partial / "README.md").write_text(card, encoding="utf-8")
        run = {"format_version": FORMAT_VERSION, "kind": kind, "members": []}
        write_json(partial / RUN_FILE, run)
    if adapter is None:  # of the run that was here before
        shutil.rmtree(folder / ADAPTER_FOLDER, ignore_errors=True)


def read_run(folder: Path) -> dict[str, Any]:
    """Read `run.json`: {format_version, kind, members}.

    Raises:
        FileNotFoundError: `folder` is not a complete run folder.
        ValueError: It is of an unknown kind or of a newer format.
    """
    path = folder / RUN_FILE
    if not path.is_file():
        there = "is not there" if not folder.is_dir() else f"holds no {RUN_FILE}"
        raise FileNotFoundError(
            f"{folder} {there}, so it is not a complete run folder. Finish or repeat "
            "train.py --output_dir with this folder."
        )
    run = read_json(path)
    if not isinstance(run, dict) or run.get("kind") not in KINDS:
        raise ValueError(f"{path} must give a kind among {list(KINDS)}, got {run!r}.")
    version = run.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ValueError(
            f"{folder} has format version {version}, but this nearfar reads versions up to "
            f"{FORMAT_VERSION}. Update nearfar."
        )
    return run


def push_run(
    folder: Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    tag: str | None = None,
    token: str | None = None,
    scores: Sequence[Path] = (),
) -> str:
    """Publish a run folder in one commit, and return its address on the Hub.

    Args:
        folder: A complete run folder; nothing in it changes but its card, if `scores` are given.
        repo_id: "owner/name", or a name of one's own.
        private: Whether others may not see the repository.
        revision: The branch; None is main.
        tag: A name for the commit.
        token: With write access; None takes the one that `hf auth login` or HF_TOKEN gives.
        scores: Score folders of this system, one for each training seed, for the card's table.

    Raises:
        FileNotFoundError: `folder` is not a complete run folder.
        ValueError, PermissionError, ConnectionError: As `nearfar.publishing.upload`.
    """
    read_run(folder)
    if scores:
        card = folder / "README.md"
        text = with_results(card.read_text(encoding="utf-8"), scores)
        with whole_folder(folder) as partial:
            (partial / card.name).write_text(text, encoding="utf-8")
    return upload(folder, repo_id, private=private, revision=revision, tag=tag, token=token)


def model_card(
    config: Any,  # noqa: ANN401 - an AsdConfig or an AutoencoderConfig
    recipe: Mapping[str, Any],
    metrics: Mapping[str, Any],
    thresholds: Mapping[str, float | None],
) -> str:
    """Return the README.md of a run folder."""
    template = importlib.resources.files("nearfar").joinpath("model_card_template.md")
    rows = [
        f"| {machine} | {'none' if value is None else f'{value:.4f}'} |"
        for machine, value in sorted(thresholds.items())
    ]
    return Template(template.read_text(encoding="utf-8")).substitute(
        license=license_metadata(recipe.get("encoder_license"), recipe.get("data_license")),
        licenses=license_section(recipe),
        system=described(config, recipe, metrics),
        year=recipe["year"],
        seed=recipe["seed"],
        num_references=metrics["num_references"],
        calibration=calibration_sentence(recipe, metrics),
        threshold_rule=recipe["threshold"],
        threshold_quantile=recipe["threshold_quantile"],
        example=sorted(thresholds)[0],
        thresholds="\n".join(rows),
        false_alarms=false_alarm_section(
            metrics.get("false_alarms", []),
            tuned_folds=recipe.get("calibration") == "cross_fitted"
            and not metrics["frozen_encoder"],
        ),
        front_end=front_end_section(config, metrics["guard"]),
    )


def described(
    config: Any,  # noqa: ANN401 - as above
    recipe: Mapping[str, Any],
    metrics: Mapping[str, Any],
) -> str:
    """Return what kind of a system it is, for the card."""
    if config.model_type == AUTOENCODER_TYPE:
        return AUTOENCODER_TEXT.format(
            num_parameters=metrics["num_parameters"],
            channels=" and ".join(config.channels),
            frames=config.num_stacked_frames,
            bins=config.num_mel_bins,
            epochs=recipe["num_train_epochs"],
            scoring=SCORINGS[config.scoring],
        )
    return MODEL_TEXT.format(
        encoder=config.encoder_config.model_type.removeprefix("nearfar_").upper().replace("_", "-"),
        hidden_size=config.encoder_config.hidden_size,
        num_layers=config.encoder_config.num_hidden_layers,
        front_end=config.front_end,
        pooling=config.pooling,
        head=config.head,
        detector=config.detector,
        training="none: frozen encoder" if metrics["frozen_encoder"] else "fine-tuned on normals",
        origin=recipe.get("encoder_checkpoint") or "random initialisation",
        num_classes=metrics["num_classes"],
    )


def front_end_section(
    config: Any,  # noqa: ANN401 - as above
    guard: Mapping[str, Mapping[str, Any]] | None,
) -> str:
    """Return what the card says of the front end and its guard.

    Args:
        config: As above.
        guard: Machine -> the fields of a `GuardDecision`; None without a guard.
    """
    if config.model_type == AUTOENCODER_TYPE:
        return "None: a recording is heard as it is."
    if not guard:
        return f"No guard: `{config.front_end}` is applied to the clips of every machine."
    rows = [
        f"| {machine} | {decision['strength']:g} | {decibels(decision['taken_db'])} | "
        f"{decibels(decision['lines_taken_db'])} | {decibels(decision['rest_taken_db'])} | "
        f"{percent_change(decision.get('distance_change'))} |"  # older runs did not measure it
        for machine, decision in sorted(guard.items())
    ]
    return GUARD_TEXT.format(front_end=config.front_end) + "\n".join(rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Publish a run folder, or write a Space of the demo."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    parser = argparse.ArgumentParser(prog="python -m nearfar.hub")
    commands = parser.add_subparsers(dest="command", required=True)
    push = commands.add_parser("push", help="upload a run folder, in one commit")
    push.add_argument("folder", type=Path, metavar="run", help="the run folder")
    push.add_argument("repo", help="owner/name, or a name of your own; made if it is not there")
    push.add_argument("--private", action="store_true", help="nobody else may see it")
    push.add_argument("--revision", help="a branch other than main; made if it is not there")
    push.add_argument("--tag", help="a name for what is uploaded, such as v1")
    push.add_argument("--token", help="with write access, if not HF_TOKEN or a stored one")
    push.add_argument(
        "--scores", type=Path, nargs="+", default=(), help="score folders, for the card's table"
    )
    push.set_defaults(run=_push)
    add_commands(commands)
    args = parser.parse_args(argv)
    print(args.run(args))  # noqa: T201 - the answer


def _push(args: argparse.Namespace) -> str:
    return push_run(
        args.folder,
        args.repo,
        private=args.private,
        revision=args.revision,
        tag=args.tag,
        token=args.token,
        scores=args.scores,
    )


def decibels(value: float | None) -> str:
    """Return a level as the card shows it."""
    return "none" if value is None else f"{value:.1f} dB"


def percent_change(share: float | None) -> str:
    """Return a change as the card shows it."""
    return "unknown" if share is None else f"{100 * share:+.0f} %"


if __name__ == "__main__":
    script(main)
