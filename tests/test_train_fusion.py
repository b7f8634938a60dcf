"""train.py trains the members of a fusion, each once, and writes the fusion's run folder."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import score
import train
from data_scripts.near_far import decoded, load_near_far
from nearfar import training
from nearfar.files import read_json
from nearfar.fusion_run import read_fusion
from nearfar.hub import read_run
from nearfar.training import TrainingInterruptedError
from tests.loopback_hub import USER, LoopbackHub
from tests.scripts import run_script, train_by_two_processes, weights
from tests.tiny import TINY_EAT, TINY_ENCODER

BASE = {"train_batch_size": 8, "held_out_share": 0.2, "seed": 5, "label_parts": ["composite"]}
TYPO = {"head_options": {"margn": 0.2}}
RECIPES: dict[str, dict[str, Any]] = {
    "one": BASE | {"encoder_type": "nearfar_beats"},
    "other": BASE | {"encoder_type": "nearfar_eat", "pooling": "cls"},
    "fused": {
        "kind": "fusion",
        "members": [
            {"recipe": "one"},
            {"recipe": "other"},
            {"recipe": "one", "name": "faster", "overrides": {"learning_rate": 0.01}},
        ],
        "weights": [0.2, 0.3, 0.5],
    },
    "joined": {
        "kind": "feature_fusion",
        "members": [{"recipe": "one"}, {"recipe": "other"}],
        "detector": "knn",
        "detector_options": {"per_domain": False},
    },
}
ENCODERS = {
    "nearfar_eat": {k: v for k, v in TINY_EAT.items() if k != "model_type"},
    "nearfar_beats": {k: v for k, v in TINY_ENCODER.items() if k != "model_type"},
}


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("recipes"), RECIPES)


def written(folder: Path, described: dict[str, dict[str, Any]]) -> Path:
    for name, values in described.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))
    return folder


def words(recipe: Path, data: Path, run: Path, *extra: object) -> list[object]:
    here = ["--recipe", recipe, "--data_dir", data, "--output_dir", run]
    return [*here, "--encoder_configs", json.dumps(ENCODERS), "--max_steps", 2, *extra]


@pytest.fixture(scope="module")
def fused(recipes: Path, factory_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the fusion; its members are beside it."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as monkeypatch:
        recipe = recipes / "fused.yaml"
        run_script(
            train, words(recipe, factory_dir, root / "fused", "--members_dir", root), monkeypatch
        )
    return root / "fused"


@pytest.fixture(scope="module")
def joined(recipes: Path, factory_dir: Path, fused: Path) -> Path:
    """The run folder of the feature fusion of members that another fusion trained."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(train, "train_system", fail)
        run = fused.parent / "joined"
        recipe = recipes / "joined.yaml"
        run_script(
            train, words(recipe, factory_dir, run, "--members_dir", fused.parent), monkeypatch
        )
    return run


def fail(*_: object, **__: object) -> None:
    raise AssertionError("a finished member was trained again")


def test_a_fusion_holds_its_members_weights_and_recipe(fused: Path) -> None:
    run = read_run(fused)
    assert run["kind"] == "fusion"
    assert run["members"] == ["members/1_one", "members/2_other", "members/3_faster"]
    fusion, search = read_fusion(fused)
    assert (fusion.weights, search) == ((0.2, 0.3, 0.5), None)
    metrics = read_json(fused / "metrics.json")
    expected = {"recipe": "fused", "seed": 5, "frozen_encoder": False, "smoke": False}
    assert {name: metrics[name] for name in expected} == expected
    faster = yaml.safe_load((fused / "members" / "3_faster" / "recipe.yaml").read_text())
    assert (faster["learning_rate"], faster["max_steps"]) == (0.01, 2)
    for path in fused.rglob("*.yaml"):
        assert str(fused.parent) not in path.read_text()


def test_a_member_becomes_what_its_recipe_makes_alone(
    fused: Path, recipes: Path, factory_dir: Path, tmp_path: Path, monkeypatch
) -> None:
    """Also the last one, though others trained before it in the same process."""
    alone = ["--recipe", recipes / "one.yaml", "--data_dir", factory_dir, "--output_dir", tmp_path]
    alone += ["--encoder_config", json.dumps(TINY_ENCODER), "--max_steps", 2]
    run_script(train, [*alone, "--learning_rate", 0.01], monkeypatch)
    found, due = weights(fused.parent / "faster"), weights(tmp_path)
    assert found.keys() == due.keys()
    assert all(torch.equal(found[name], due[name]) for name in due)


def test_finished_members_are_not_trained_again(
    fused: Path, recipes: Path, factory_dir: Path, monkeypatch
) -> None:
    monkeypatch.setattr(train, "train_system", fail)
    shutil.rmtree(fused / "members")
    (fused / "run.json").unlink()
    recipe = recipes / "fused.yaml"
    run_script(train, words(recipe, factory_dir, fused, "--members_dir", fused.parent), monkeypatch)
    linked = fused / "members" / "2_other" / "model.safetensors"
    assert linked.samefile(fused.parent / "other" / "model.safetensors")


@pytest.mark.parametrize("name", ["fused", "joined"])
def test_a_fusion_is_pushed_when_it_is_written_with_its_members_inside(
    name: str,
    hub: LoopbackHub,
    fused: Path,
    recipes: Path,
    factory_dir: Path,
    tmp_path: Path,
    monkeypatch,
) -> None:
    monkeypatch.setattr(train, "train_system", fail)
    line = words(recipes / f"{name}.yaml", factory_dir, tmp_path / "mine")
    line += ["--members_dir", fused.parent, "--push_to_hub", "--hub_private_repo"]
    run_script(train, line, monkeypatch)
    repository = hub.repository("models", f"{USER}/mine")
    assert repository.private
    files = repository.files()
    run = read_run(tmp_path / "mine")
    assert json.loads(files["run.json"].content) == run
    for member in run["members"]:
        assert {f"{member}/run.json", f"{member}/model.safetensors"} <= set(files)
    for path, blob in files.items():
        assert "trainer_state" not in path
        for folder in (tmp_path, fused.parent, recipes):
            assert str(folder).encode() not in blob.content, path


def test_an_interrupted_fusion_goes_on_with_the_member_that_was_training(
    fused: Path, recipes: Path, factory_dir: Path, tmp_path: Path, monkeypatch
) -> None:
    shutil.copytree(fused.parent / "one", tmp_path / "members" / "one")
    recipe, run = recipes / "fused.yaml", tmp_path / "run"
    line = words(recipe, factory_dir, run, "--members_dir", tmp_path / "members")
    calls: list[int] = []
    with monkeypatch.context() as patched:
        patched.setattr(training, "_any_process", lambda *_, **__: calls.append(1) or True)
        with pytest.raises(TrainingInterruptedError, match="--resume_from_checkpoint latest"):
            run_script(train, line, patched)
    assert len(calls) == 1  # of "other"
    assert not (run / "run.json").exists()
    assert (tmp_path / "members" / "other" / "trainer_state" / "step_000001").is_dir()
    run_script(train, [*line, "--resume_from_checkpoint", "latest"], monkeypatch)
    assert len(read_run(run)["members"]) == 3
    found, due = weights(tmp_path / "members" / "other"), weights(fused.parent / "other")
    assert all(torch.equal(found[name], due[name]) for name in due)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--learning_rate", 0.5], r"one was trained with learning_rate=0.0001, but .* has 0.5"),
        (["--train_subsets", "eval_train"], r"was trained with train_subsets=\['dev'\]"),
    ],
)
def test_a_member_trained_with_other_values_is_not_taken(
    changed, message, fused: Path, recipes: Path, factory_dir: Path, tmp_path: Path, monkeypatch
) -> None:
    line = words(recipes / "fused.yaml", factory_dir, tmp_path, "--members_dir", fused.parent)
    with pytest.raises(ValueError, match=message):
        run_script(train, [*line, *changed], monkeypatch)
    assert not (tmp_path / "run.json").exists()


def test_a_member_trained_on_other_clips_is_not_taken(
    fused: Path, recipes: Path, factory_dir: Path, tmp_path: Path, monkeypatch
) -> None:
    data = tmp_path / "data"
    shutil.copytree(factory_dir, data)
    sorted(data.rglob("train/*.wav"))[0].unlink()
    line = words(recipes / "fused.yaml", data, tmp_path / "run", "--members_dir", fused.parent)
    with pytest.raises(ValueError, match=r"one was trained on other clips than those of"):
        run_script(train, line, monkeypatch)


@pytest.mark.parametrize(
    ("name", "values", "extra", "message"),
    [
        ("fused", {"learning_rate": 0.1}, [], r"'fusion' does not read \['learning_rate'\]. Write"),
        (
            "fused",
            {"members": [{"recipe": "one", "overrides": {"learning_rte": 1}}, {"recipe": "other"}]},
            [],
            r"Member one has an unknown key 'learning_rte'. Did you mean 'learning_rate'",
        ),
        ("fused", {"members": [{"recipe": "one"}, {"recipe": "two"}]}, [], "There is no recipe"),
        ("fused", {"members": [{"recipe": "one"}, {"recipe": "joined"}]}, [], "kind is 'feature_"),
        ("fused", {"weights": [0.5, 0.5]}, [], "2 weights came for 3 members"),
        ("fused", {"weights": [0.5, 0.5, 0.5]}, [], "must have the sum 1"),
        ("fused", {}, ["--encoder_checkpoints", "nearfar_fisher=x"], "not MODEL_TYPE=PATH"),
        ("fused", {}, ["--train_batch_size", 0], "Member one: train_batch_size=0"),
        (
            "fused",
            {},
            ["--encoder_configs", json.dumps({"nearfar_beats": ENCODERS["nearfar_beats"]})],
            "Member other: This recipe takes a pre-trained encoder of type 'nearfar_eat'",
        ),
        (
            "fused",
            {},
            ["--encoder_checkpoints", "nearfar_eat=nowhere.pt"],
            "There is no encoder checkpoint nowhere.pt",
        ),
        (
            "fused",
            {},
            ["--encoder_config", json.dumps(TINY_ENCODER), "--encoder_configs", "{}"],
            "Member other: .* takes an encoder of type 'nearfar_eat', but .* a 'nearfar_beats'",
        ),
        (
            "fused",
            {"members": [{"recipe": "one"}, {"recipe": "one", "name": "b", "overrides": TYPO}]},
            ["--weights", 0.5, 0.5],
            r"Member b: head_options \['margn'\] are unknown",
        ),
        ("one", {"weights": [0.5, 0.5]}, [], r"kind='model' does not read \['weights'"),
        (
            "joined",
            {"members": [{"recipe": "one"}, {"recipe": "other", "overrides": {"seed": 6}}]},
            [],
            r"embeddings of the same clips, but its members have seed=\[5, 6\]",
        ),
    ],
)
def test_a_fusion_that_cannot_be_is_refused_before_anything_is_trained(
    name, values, extra, message, factory_dir: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(train, "train_system", fail)
    folder = written(tmp_path, RECIPES | {name: RECIPES[name] | values})
    line = words(folder / f"{name}.yaml", factory_dir, tmp_path / "run", *extra)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run_script(train, line, monkeypatch)
    assert not (tmp_path / "run").exists()


def test_a_feature_fusion_scores_by_the_nearest_joined_reference(
    joined: Path, factory_dir: Path, tmp_path: Path, monkeypatch
) -> None:
    run_script(
        score,
        ["--model", joined, "--data_dir", factory_dir, "--output_dir", tmp_path / "scores"],
        monkeypatch,
    )
    scorer = score.load_scorer(joined)
    machine = scorer.bank.machines[0]
    train_clips, test_clips = (
        [c for c in decoded(load_near_far(factory_dir)[split]) if c["machine"] == machine]
        for split in ("train", "test")
    )
    held = set(scorer.calibration(machine).file_names)
    assert len(held) == 4
    references = [clip for clip in train_clips if clip["file_name"] not in held]

    def vectors(clips: list[dict[str, Any]]) -> list[np.ndarray]:
        tables = [m.embed(clips).embedding.astype(np.float64) for m in scorer.members]
        rows = []
        for i in range(len(clips)):
            parts = [table[i].reshape(-1) for table in tables]
            rows.append(np.concatenate([part / np.linalg.norm(part) for part in parts]))
        return rows

    known = vectors(references)
    table = scorer.score(test_clips)
    for vector, found in zip(vectors(test_clips), table.anomaly_scores, strict=True):
        cosines = [
            vector @ other / (np.linalg.norm(vector) * np.linalg.norm(other)) for other in known
        ]
        assert found == pytest.approx(1 - max(cosines), abs=1e-5)
    alone = scorer.score([test_clips[3]])
    np.testing.assert_allclose(alone.anomaly_scores[0], table.anomaly_scores[3], atol=1e-4)


def test_a_feature_fusion_refuses_members_that_did_not_make_its_bank(
    joined: Path, fused: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(joined, moved)
    assert score.load_scorer(moved).recipe["seed"] == 5
    card = (moved / "README.md").read_text()
    assert "members/2_other" in card
    assert "$" not in card
    shutil.rmtree(moved / "members" / "1_one")
    shutil.copytree(fused.parent / "faster", moved / "members" / "1_one")
    with pytest.raises(ValueError, match="embeddings of other members"):
        score.load_scorer(moved)


def test_weights_are_searched_on_the_labels_of_development_clips(
    fused: Path, recipes: Path, factory_dir: Path, tmp_path: Path, monkeypatch
) -> None:
    values = {k: v for k, v in RECIPES["fused"].items() if k != "weights"}
    searched = values | {"search_weights": True, "search_step": 0.25, "normalization": "min_max"}
    written(tmp_path, RECIPES | {"searched": searched})
    line = words(
        tmp_path / "searched.yaml", factory_dir, tmp_path / "run", "--members_dir", fused.parent
    )
    run_script(train, line, monkeypatch)
    fusion, search = read_fusion(tmp_path / "run")
    assert fusion.normalization == "min_max"
    assert all(weight * 4 == round(weight * 4) for weight in fusion.weights)
    assert list(search)[:2] == ["nested", "optimistic"]
    assert len(search["nested_weights"]) == 2
    assert "labelled development clips" in (tmp_path / "run" / "README.md").read_text()
    run_script(train, [*line, "--weights", 0.5, 0.25, 0.25], monkeypatch)
    assert read_fusion(tmp_path / "run")[0].weights == (0.5, 0.25, 0.25)
    data = tmp_path / "data"
    shutil.copytree(factory_dir, data, ignore=shutil.ignore_patterns("test"))
    line[line.index(factory_dir)] = data
    with pytest.raises(ValueError, match=r"needs labelled test clips, but .* has no test clips"):
        run_script(train, line, monkeypatch)


@pytest.mark.slow
def test_two_processes_train_the_members_that_one_would(
    fused: Path, recipes: Path, factory_dir: Path, tmp_path: Path
) -> None:
    """The group of processes outlives each member, and the search that comes after them."""
    values = {k: v for k, v in RECIPES["fused"].items() if k != "weights"}
    written(tmp_path, RECIPES | {"searched": values | {"search_weights": True, "search_step": 0.5}})
    recipe, run = tmp_path / "searched.yaml", tmp_path / "run"
    train_by_two_processes(words(recipe, factory_dir, run))
    assert len(score.load_scorer(run).members) == 3
    for number, name in enumerate(("one", "other", "faster"), start=1):
        found, due = weights(run / "members" / f"{number}_{name}"), weights(fused.parent / name)
        for key, tensor in due.items():
            torch.testing.assert_close(found[key], tensor, rtol=1e-3, atol=1e-4, msg=key)
