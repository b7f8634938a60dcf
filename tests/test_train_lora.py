"""LoRA by train.py: a complete run folder with its adapter beside; and what no training means."""

import importlib.util
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

import score
import train
from assembly import labels
from assembly.models import untrained
from data_scripts.near_far import decoded, load_near_far
from modeling import (
    ENCODERS,
    LORA_TARGET_MODULES,
    AsdConfig,
    AsdForProxyClassification,
    AsdModel,
)
from modeling.modeling_asd import Encoder
from nearfar import training, training_arguments
from nearfar.evaluation import ScoreTable
from nearfar.files import read_json
from nearfar.training import TrainingInterruptedError
from tests.scripts import TINY_RECIPE, assert_two_processes_train_as_one, run_script, weights
from tests.tiny import ENCODERS as TINY_ENCODERS

ROOT = Path(__file__).resolve().parents[1]
LORA = ("--lora_rank", 3, "--lora_alpha", 6, "--learning_rate", 1e-2)
LEARNT = ("--pooling", "attentive_statistics", "--projection", "batch_norm_linear")
LEARNT += ("--projection_size", 7, "--scored_embedding", "projected")
OPTIONS = {  # another combination of pooling and layers for each encoder
    "beats": LEARNT,
    "eat": ("--layers", 1, 2, "--pooling", "cls"),
    "fisher": ("--pooling_options", '{"keep_bands": true}', "--projection", "linear"),
}


@pytest.fixture(scope="module")
def encoder_dirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each encoder, as pre-training leaves it."""
    folders = {}
    for name, described in TINY_ENCODERS.items():
        folders[name] = tmp_path_factory.mktemp("encoders") / name
        with torch.random.fork_rng():
            torch.manual_seed(1)
            config = AsdConfig(encoder_config=described).encoder_config
            ENCODERS[config.model_type](config).save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="module")
def trained(
    encoder_dirs: dict[str, Path], factory_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A run folder of each encoder after four updates of its adapters."""
    folders = {}
    for name, encoder_dir in encoder_dirs.items():
        folders[name] = tmp_path_factory.mktemp("runs") / name
        arguments = [*words(encoder_dir, factory_dir, folders[name]), *LORA, *OPTIONS[name]]
        with pytest.MonkeyPatch.context() as monkeypatch:
            run_script(train, [*arguments, "--max_steps", 4], monkeypatch)
    return folders


def words(encoder_dir: Path, data_dir: Path, output_dir: Path) -> list[object]:
    """Return the command line that trains on an encoder's folder."""
    recipe = TINY_RECIPE[2:]  # without its encoder_config
    arguments = ["--data_dir", data_dir, "--output_dir", output_dir]
    return [*arguments, *recipe, "--encoder_checkpoint", encoder_dir]


def base_model(run: Path, encoder_dir: Path) -> AsdForProxyClassification:
    """Return what the adapter of a run belongs on: the encoder as it was, and all else anew."""
    model = AsdForProxyClassification(AsdConfig.from_pretrained(run))
    encoder: Encoder = ENCODERS[model.config.encoder_config.model_type].from_pretrained(encoder_dir)
    model.asd.load_encoder(encoder)
    return model


def outputs(model: torch.nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    near, far = (0.1 * torch.randn(3, 16_000, generator=generator) for _ in range(2))
    with torch.no_grad():
        output = model.eval()(near_values=near, far_values=far)
    return torch.cat([output.embedding.flatten(1), output.logits], dim=1)


@pytest.mark.parametrize("encoder", TINY_ENCODERS)
def test_the_run_folder_is_the_encoder_with_its_adapter(encoder, trained, encoder_dirs) -> None:
    run = trained[encoder]
    assert {path.name for path in (run / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    merged = AsdForProxyClassification.from_pretrained(run)
    adapted = PeftModel.from_pretrained(base_model(run, encoder_dirs[encoder]), run / "adapter")
    torch.testing.assert_close(outputs(adapted), outputs(merged), rtol=0, atol=1e-5)
    with adapted.disable_adapter():
        assert (outputs(adapted) - outputs(merged)).abs().max() > 1e-3


@pytest.mark.parametrize("encoder", TINY_ENCODERS)
def test_merged_weights_lie_beside_no_adapter_and_differ_only_where_one_was(
    encoder, trained, encoder_dirs
) -> None:
    run = trained[encoder]
    assert not list(run.glob("adapter_*"))
    assert not [name for name in weights(run) if "lora" in name or "base" in name]
    before = load_file(encoder_dirs[encoder] / "model.safetensors")
    after = {name.removeprefix("asd.encoder."): tensor for name, tensor in weights(run).items()}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    targets = LORA_TARGET_MODULES[f"nearfar_{encoder}"]
    names = {name for name in before if name.split(".")[-2] in targets and "layers." in name}
    assert changed == {name for name in names if name.endswith(".weight")}


def test_an_adapter_names_no_place_of_this_machine(trained, encoder_dirs) -> None:
    for name, run in trained.items():
        config = read_json(run / "adapter" / "adapter_config.json")
        assert not config["base_model_name_or_path"]
        assert (config["r"], config["lora_alpha"]) == (3, 6)
        for path in run.rglob("*.json"):
            assert str(encoder_dirs[name].parent) not in path.read_text(), path


def test_the_run_folder_is_scored_by_score_py_and_calls_itself_fine_tuned(
    trained, factory_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained["beats"]
    arguments = ["--model", run, "--data_dir", factory_dir, "--output_dir", tmp_path]
    run_script(score, [*arguments, "--num_resamples", 0], monkeypatch)
    metrics = read_json(tmp_path / "metrics.json")
    assert 0 < metrics["official_score"] < 1
    assert metrics["frozen_encoder"] is False
    assert np.isfinite(ScoreTable.read_csv(tmp_path / "scores.csv").anomaly_scores).all()
    number = sum(p.numel() for p in AsdForProxyClassification.from_pretrained(run).parameters())
    assert read_json(run / "metrics.json")["num_parameters"] == number


def test_interrupted_and_resumed_is_as_never_interrupted(
    encoder_dirs, factory_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    extra = [*LORA, *LEARNT, "--lora_dropout", 0.2, "--max_steps", 4, "--ema_decay", 0.9]
    extra += ["--validation_share", 0.2, "--eval_steps", 1, "--keep_best", 2]
    arguments = [*words(encoder_dirs["beats"], factory_dir, whole), *extra]
    run_script(train, arguments, monkeypatch)
    arguments = [*words(encoder_dirs["beats"], factory_dir, halves), *extra]
    calls = []
    with monkeypatch.context() as patched:
        stop = lambda *_, **__: calls.append(1) or len(calls) == 3  # noqa: E731 - one use
        patched.setattr(training, "_any_process", stop)
        with pytest.raises(TrainingInterruptedError, match="resume_from_checkpoint latest"):
            run_script(train, arguments, patched)
    assert not (halves / "adapter").exists()
    run_script(train, [*arguments, "--resume_from_checkpoint", "latest"], monkeypatch)
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(halves)[name]), name
    names = ("adapter/adapter_model.safetensors", "reference_bank.safetensors")
    for name in names:
        a, b = load_file(whole / name), load_file(halves / name)
        assert all(torch.equal(a[key], b[key]) for key in a | b), name


def test_activation_checkpointing_changes_nothing(
    encoder_dirs, trained, factory_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*words(encoder_dirs["beats"], factory_dir, tmp_path), *LORA, *LEARNT]
    arguments += ["--max_steps", 4, "--activation_checkpointing"]
    run_script(train, arguments, monkeypatch)
    for name, tensor in weights(trained["beats"]).items():
        torch.testing.assert_close(weights(tmp_path)[name], tensor, msg=name)


@pytest.mark.parametrize(
    ("options", "adapted"),
    [
        (["--trainable_layers", 1], {"1.qkv", "1.out_proj", "1.fc1", "1.fc2"}),
        (["--trainable_layers", 2, "--lora_target_modules", "qkv"], {"0.qkv", "1.qkv"}),
        (["--layers", 1, "--trainable_layers", 1, "--lora_target_modules", "fc1"], {"0.fc1"}),
        (["--lora_target_modules", "attention.qkv", "fc2"], {"0.qkv", "1.qkv", "0.fc2", "1.fc2"}),
    ],
)
def test_adapters_sit_on_the_maps_asked_for_of_the_last_layers(
    options, adapted, encoder_dirs, factory_dir: Path, tmp_path: Path, monkeypatch
) -> None:
    arguments = [*words(encoder_dirs["eat"], factory_dir, tmp_path), *LORA, *options]
    run_script(train, [*arguments, "--max_steps", 1], monkeypatch)
    names = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    parts = [name.split(".") for name in names if "lora_A" in name]
    assert {f"{part[part.index('layers') + 1]}.{part[-3]}" for part in parts} == adapted


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--lora_alpha", 8], r"\['lora_alpha'\] came without a lora_rank"),
        (["--lora_rank", 0], "lora_rank=0 must be at least 1"),
        (["--lora_rank", 4, "--trainable_layers", 0], "leaves no layer for the adapters"),
        (["--lora_rank", 4, "--trainable_layers", 3], "the encoder has 2 layers"),
        (
            ["--lora_rank", 4, "--lora_target_modules", "qkv", "q_prj"],
            r"\['qkv', 'q_prj'\] are no linear maps .* 'q_proj'",
        ),
    ],
)
def test_a_mistake_is_answered_and_nothing_is_written(
    extra, message, encoder_dirs, factory_dir: Path, tmp_path: Path, monkeypatch
) -> None:
    arguments = words(encoder_dirs["beats"], factory_dir, tmp_path / "run")
    with pytest.raises(ValueError, match=message):
        run_script(train, [*arguments, *extra, "--max_steps", 1], monkeypatch)
    assert not (tmp_path / "run" / "run.json").exists()
    assert not (tmp_path / "run" / "adapter").exists()


def test_without_peft_the_answer_is_what_to_install(
    encoder_dirs, factory_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_arguments, "is_peft_available", lambda: False)
    arguments = [*words(encoder_dirs["beats"], factory_dir, tmp_path), *LORA]
    with pytest.raises(ValueError, match=r"pip install 'nearfar\[train\]'"):
        run_script(train, arguments, monkeypatch)


def test_training_without_lora_needs_no_peft(
    encoder_dirs, factory_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)  # importing it fails from here on
    spec = importlib.util.spec_from_file_location("train_without_peft", ROOT / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    arguments = [*words(encoder_dirs["beats"], factory_dir, tmp_path), "--max_steps", 1]
    run_script(module, arguments, monkeypatch)
    assert (tmp_path / "run.json").is_file()


def test_a_full_disk_leaves_the_run_before_and_a_run_without_lora_leaves_no_adapter(
    trained, encoder_dirs, factory_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained["beats"], run)
    shutil.rmtree(run / "trainer_state")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    arguments = [*words(encoder_dirs["beats"], factory_dir, run), "--max_steps", 1]
    with monkeypatch.context() as patched:
        patched.setattr(PeftModel, "save_pretrained", fail)
        with pytest.raises(OSError, match="No space left"):
            run_script(train, [*arguments, *LORA], patched)
    shutil.rmtree(run / "trainer_state")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    run_script(train, arguments, monkeypatch)
    assert not (run / "adapter").exists()


def test_an_encoder_as_it_is_is_scored_without_a_weight_drawn_at_random(
    encoder_dirs, factory_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a recipe whose pooling and projection have to be trained, with any seed."""
    scores = []
    for seed in (1, 2):
        run = tmp_path / str(seed)
        arguments = [*words(encoder_dirs["beats"], factory_dir, run), *LEARNT, *LORA]
        arguments += ["--no_training", "--held_out_share", 0, "--seed", seed]
        run_script(train, arguments, monkeypatch)
        assert not (run / "adapter").exists()
        scorer = score.load_scorer(run)
        clips = decoded(load_near_far(factory_dir)["test"])
        scores.append(scorer.score([clips[0], clips[-1]]).anomaly_scores)
    np.testing.assert_array_equal(*scores)
    config = AsdConfig.from_pretrained(run)
    assert (config.pooling, config.projection, config.scored_embedding) == (
        "mean",
        "none",
        "pooled",
    )
    near = torch.from_numpy(clips[0]["near"])[None]
    encoder = ENCODERS["nearfar_beats"].from_pretrained(encoder_dirs["beats"]).eval()
    with torch.no_grad():
        mean = encoder(near).last_hidden_state.mean(dim=1)
        torch.testing.assert_close(AsdModel.from_pretrained(run)(near).embedding.flatten(1), mean)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"pooling": "attentive_statistics", "pooling_options": {"size": 9, "keep_bands": True}}
            | {"join_bands": True, "projection": "linear", "projection_size": 5},
            {"pooling": "mean", "pooling_options": {"keep_bands": True}, "join_bands": True},
        ),
        (
            {"pooling": "rdp", "pooling_options": {"gamma": 2.0}, "layers": [1, 2]},
            {"pooling": "rdp", "pooling_options": {"gamma": 2.0}, "layers": [1, 2]},
        ),
        (
            {"pooling": "attentive_statistics", "scored_pooling": "rdp"},
            {"pooling": "mean", "pooling_options": {"keep_bands": False}, "scored_pooling": "rdp"},
        ),
    ],
)
def test_what_needs_no_training_stays_as_configured(values, expected) -> None:
    config = AsdConfig(encoder_config=TINY_ENCODERS["beats"], **values)
    before = config.to_dict()
    found = untrained(config)
    assert config.to_dict() == before
    expected = expected | {"projection": "none", "projection_size": None}
    expected |= {"scored_embedding": "pooled"}
    assert {name: getattr(found, name) for name in expected} == expected
    rest = before.keys() - expected.keys()
    assert {name: found.to_dict()[name] for name in rest} == {name: before[name] for name in rest}


def test_pseudo_labels_come_from_the_encoder_as_it_is(
    encoder_dirs, factory_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So they are the same whatever pooling and projection are to be trained on them."""
    made = []

    def keep(table, **_):
        made.append(table.embedding)
        raise KeyboardInterrupt

    monkeypatch.setattr(labels, "pseudo_attributes", keep)
    machine = next((factory_dir / "dev_data" / "raw").iterdir()).name
    for seed, options in ((1, LEARNT), (2, ("--projection", "linear"))):
        arguments = [*words(encoder_dirs["beats"], factory_dir, tmp_path), *options]
        arguments += ["--machine_types", machine, "--label_parts", "machine", "--seed", seed]
        with pytest.raises(KeyboardInterrupt):
            run_script(train, [*arguments, "--held_out_share", 0], monkeypatch)
    np.testing.assert_array_equal(*made)


@pytest.mark.slow
def test_two_processes_train_an_adapter_as_one(
    encoder_dirs, factory_dir: Path, tmp_path: Path
) -> None:
    arguments = [*words(encoder_dirs["eat"], factory_dir, tmp_path), "--max_steps", 6, *LORA]
    assert_two_processes_train_as_one(arguments, tmp_path)  # in folders of their own


def test_an_encoder_folder_that_lacks_a_weight_is_refused(
    encoder_dirs, factory_dir, tmp_path, monkeypatch
) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(encoder_dirs["eat"], folder)
    kept = weights(folder)
    del kept["layers.1.fc2.weight"]
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights, 'layers\.1\.fc2\.weight'"):
        run_script(train, words(folder, factory_dir, tmp_path / "run"), monkeypatch)
    assert not (tmp_path / "run" / "run.json").exists()
