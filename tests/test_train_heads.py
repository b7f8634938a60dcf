"""Every head and every adversary through train.py; a head with a state resumes exactly."""

import json
from pathlib import Path

import pytest
import torch

import train
from assembly import training_clips
from modeling import HEADS, AsdConfig, AsdForProxyClassification
from modeling.adversary import reversal_strength
from nearfar import training
from nearfar.training import TrainingInterruptedError
from tests.scripts import TINY_RECIPE, assert_two_processes_train_as_one, run_script, weights

OPTIONS = {  # small enough for embeddings of 32 numbers; two views, where there is a choice
    "subcluster_adacos": {"num_subclusters": 3, "trainable_centers": False},
    "adaproj": {"num_basis_vectors": 4},
    "os_scl": {"num_subcenters": 5, "num_views": 2},
}


@pytest.mark.parametrize("head", sorted(set(HEADS) - {"arcface"}))
def test_every_head_trains_and_is_saved(
    head, factory_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--data_dir", factory_dir, "--output_dir", tmp_path, *TINY_RECIPE]
    arguments += ["--head", head, "--head_options", json.dumps(OPTIONS.get(head, {}))]
    run_script(train, [*arguments, "--max_steps", 2], monkeypatch)
    lines = (tmp_path / "trainer_state" / "log.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines if "loss" in line]
    assert len(losses) == 2
    model = AsdForProxyClassification.from_pretrained(tmp_path)
    first = HEADS[head](32, model.config.num_labels, **OPTIONS.get(head, {}))
    moved = [name for name, tensor in model.head.state_dict().items() if name == "scale"]
    if moved:  # a dynamic scale has moved, a fixed one has not
        assert torch.equal(model.head.scale, first.scale) == (head == "subcluster_adacos")


def test_a_dynamic_scale_and_adversaries_resume_exactly(
    factory_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--data_dir", factory_dir, *TINY_RECIPE, "--max_steps", 4, "--head", "adacos"]
    arguments += ["--channels", "near", "far", "--adversaries", "domain", "channel"]
    arguments += ["--adversary_options", '{"hidden_size": 8, "weight": 1.0}']
    strengths = []
    strength = lambda p: strengths.append(p) or reversal_strength(p)  # noqa: E731 - one use
    monkeypatch.setattr("modeling.modeling_asd.reversal_strength", strength)
    run_script(train, [*arguments, "--output_dir", tmp_path / "whole"], monkeypatch)
    assert strengths == [0.0, 0.25, 0.5, 0.75]
    strengths.clear()
    calls = []
    with monkeypatch.context() as patched:
        stop = lambda *_, **__: calls.append(1) or len(calls) == 2  # noqa: E731 - one use
        patched.setattr(training, "_any_process", stop)
        with pytest.raises(TrainingInterruptedError):
            run_script(train, [*arguments, "--output_dir", tmp_path / "halves"], patched)
    resumed = [*arguments, "--output_dir", tmp_path / "halves"]
    run_script(train, [*resumed, "--resume_from_checkpoint", "latest"], monkeypatch)
    assert strengths == [0.0, 0.25, 0.5, 0.75]
    whole, halves = weights(tmp_path / "whole"), weights(tmp_path / "halves")
    for name, tensor in whole.items():
        assert torch.equal(tensor, halves[name]), name
    assert (
        whole["head.scale"]
        != AsdForProxyClassification(AsdConfig.from_pretrained(tmp_path / "whole")).head.scale
    )
    # Each of two machines has 14 source and 6 target clips; 3 and 1 of them are held out.
    source, target = (1 / whole["domain_adversary.class_weights"]).tolist()
    assert source / target == pytest.approx(22 / 10)
    assert torch.equal(whole["channel_adversary.class_weights"], torch.ones(2))


@pytest.mark.parametrize("head", ["adacos", "os_scl"])
def test_head_and_adversary_train_beside_lora(
    head, factory_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--data_dir", factory_dir, "--output_dir", tmp_path, *TINY_RECIPE]
    arguments += ["--head", head, "--adversaries", "domain", "--lora_rank", 2]
    built = []
    build = train.build_model
    monkeypatch.setattr(
        train, "build_model", lambda *args: built.append(state(build(*args))) or built[0][0]
    )
    run_script(train, [*arguments, "--max_steps", 2], monkeypatch)
    before, after = built[0][1], weights(tmp_path)
    names = [name for name in after if name.startswith(("head.", "domain_adversary."))]
    assert len(names) > 4
    still = {name for name in names if torch.equal(before[name], after[name])}
    assert not still


def state(model: AsdForProxyClassification) -> tuple[AsdForProxyClassification, dict]:
    return model, {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_a_domain_adversary_without_target_clips_is_refused(
    factory_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = training_clips.known
    monkeypatch.setattr(
        training_clips, "known", lambda clips: [row | {"domain": "source"} for row in known(clips)]
    )
    arguments = ["--data_dir", factory_dir, "--output_dir", tmp_path, *TINY_RECIPE]
    with pytest.raises(ValueError, match=r"they hold \[32, 0\] \(source, target\)"):
        run_script(train, [*arguments, "--adversaries", "domain", "--max_steps", 1], monkeypatch)
    assert not (tmp_path / "run.json").exists()


def test_an_encoder_as_it_is_has_no_adversary(
    factory_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--data_dir", factory_dir, "--output_dir", tmp_path, *TINY_RECIPE]
    arguments += ["--adversaries", "domain", "--adversary_options", '{"weight": 1.0}']
    run_script(train, [*arguments, "--no_training"], monkeypatch)
    assert not [name for name in weights(tmp_path) if "adversary" in name]


@pytest.mark.slow
def test_two_processes_move_the_scale_and_balance_the_domains_as_one(
    factory_dir: Path, tmp_path: Path
) -> None:
    arguments = ["--data_dir", factory_dir, *TINY_RECIPE, "--max_steps", 6, "--head", "adacos"]
    arguments += ["--adversaries", "domain"]
    assert_two_processes_train_as_one(arguments, tmp_path)
