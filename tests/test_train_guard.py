"""train.py --guard: fitted before training, obeyed everywhere, stored and explained."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import score
import train
from assembly import guards
from data_scripts.near_far import decoded, load_near_far
from modeling import ReferenceBank
from nearfar import guard
from tests.scripts import TINY_RECIPE, run_script

CANCEL = ("--front_end", "complex_least_squares")


def run(folder: Path, factory_dir: Path, monkeypatch: pytest.MonkeyPatch, *extra: object) -> Path:
    arguments = ["--data_dir", factory_dir, "--output_dir", folder, *TINY_RECIPE]
    run_script(train, [*arguments, "--max_steps", 2, *extra], monkeypatch)
    return folder


def assert_same_system(run: Path, other: Path, factory_dir: Path) -> None:
    weights, others = (load_file(folder / "model.safetensors") for folder in (run, other))
    assert all(torch.equal(weights[name], others[name]) for name in others)
    clips = decoded(load_near_far(factory_dir)["test"])
    scores = [score.load_scorer(folder).score(clips).anomaly_scores for folder in (run, other)]
    np.testing.assert_array_equal(*scores)
    banks = [ReferenceBank.from_pretrained(folder) for folder in (run, other)]
    for machine in banks[0].machines:
        assert torch.equal(*(bank.calibration_scores(machine) for bank in banks))


@pytest.mark.parametrize("crop", [("--crop_seconds", "0.5"), ()], ids=["crop", "whole"])
@pytest.mark.parametrize(
    ("strength", "same_as"),
    [(0.0, ("--front_end", "near")), (1.0, CANCEL)],
    ids=["refused", "allowed"],
)
def test_a_refused_front_end_is_none_and_an_allowed_one_is_as_without_guard(
    factory_dir, tmp_path, monkeypatch, strength, same_as, crop
) -> None:
    taken = {"taken_db": 1.0, "lines_taken_db": None, "rest_taken_db": 1.0}
    decision = guard.GuardDecision(strength, **taken, distance_change=0.0)
    monkeypatch.setattr(guard, "decide", lambda *_: decision)
    guarded = run(tmp_path / "a", factory_dir, monkeypatch, *CANCEL, "--guard", "fitted", *crop)
    other = run(tmp_path / "b", factory_dir, monkeypatch, *same_as, *crop)
    bank = ReferenceBank.from_pretrained(guarded)
    assert bank.guard == dict.fromkeys(bank.machines, strength)
    assert ReferenceBank.from_pretrained(other).guard == {}
    assert_same_system(guarded, other, factory_dir)


def test_the_decisions_are_in_the_metrics_and_explained_in_the_card(
    factory_dir, tmp_path, monkeypatch
) -> None:
    folder = run(tmp_path, factory_dir, monkeypatch, *CANCEL, "--guard", "fitted", "--no_training")
    decisions = json.loads((folder / "metrics.json").read_text())["guard"]
    bank = ReferenceBank.from_pretrained(folder)
    assert {name: decision["strength"] for name, decision in decisions.items()} == bank.guard
    card = (folder / "README.md").read_text()
    for machine, decision in decisions.items():
        assert decision["taken_db"] > 0
        assert f"| {machine} | {decision['strength']:g} | {decision['taken_db']:.1f} dB |" in card


def test_the_guard_hears_references_only(factory_dir, tmp_path, monkeypatch) -> None:
    heard = []

    def note(front_end, clips, feature_extractor, **_):
        heard.extend((clip["machine"], clip["file_name"]) for clip in clips)
        return {}

    monkeypatch.setattr(guards, "fit_guard", note)
    folder = run(tmp_path, factory_dir, monkeypatch, *CANCEL, "--guard", "fitted", "--no_training")
    held = json.loads((folder / "metrics.json").read_text())
    assert len(heard) == held["num_references"] < 40
    names = {(c["machine"], c["file_name"]) for c in decoded(load_near_far(factory_dir)["train"])}
    assert set(heard) < names


def test_a_guard_without_a_front_end_is_refused(factory_dir, tmp_path, monkeypatch) -> None:
    with pytest.raises(ValueError, match="front_end='near' changes nothing"):
        run(tmp_path, factory_dir, monkeypatch, "--guard", "fitted")
