import argparse
import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling.convert_original import (
    CONVERTERS,
    load_original,
    main,
    save_converted,
)
from modeling.modeling_beats import BeatsForAudioClassification, BeatsModel
from modeling.original_checkpoint import read_checkpoint
from tests.modeling.beats_checkpoints import beats_checkpoint, write_beats_checkpoint
from tests.modeling.fresh_process import run_without_nearfar

FIXTURES = Path(__file__).parents[1] / "fixtures" / "beats"
SHARED_BIAS = "encoder.layers.{}.self_attn.relative_attention_bias.weight"


def saved(folder: Path, content: Any) -> Path:
    path = folder / "checkpoint.pt"
    torch.save(content, path)
    return path


# --- What is converted ------------------------------------------------------------------------


def test_every_tensor_of_the_authors_arrives() -> None:
    checkpoint = read_checkpoint(FIXTURES / "finetuned.pt")
    model = load_original(FIXTURES / "finetuned.pt", head=True)
    shared = {SHARED_BIAS.format(layer) for layer in (1, 2)}
    theirs = [tensor for key, tensor in checkpoint["model"].items() if key not in shared]
    ours = list(model.state_dict().values())
    # The fixtures' weights are random: a tensor's sum identifies it.
    assert sorted(t.double().sum().item() for t in theirs) == sorted(
        t.double().sum().item() for t in ours
    )
    counts = json.loads((FIXTURES / "meta.json").read_text())
    assert model.num_parameters() == counts["params_finetuned"]
    assert load_original(FIXTURES / "pretrained.pt").num_parameters() == counts["params"]


def test_the_configuration_is_the_checkpoints_own() -> None:
    model = load_original(FIXTURES / "pretrained.pt")
    assert isinstance(model, BeatsModel)
    assert not model.training
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (48, 3, 4)
    assert (config.intermediate_size, config.patch_embedding_size) == (96, 32)
    assert (config.num_buckets, config.max_distance) == (320, 800)
    assert config.layerdrop == 0.05
    assert config.deep_norm
    assert config.gated_position_bias


@pytest.mark.parametrize(
    "cfg",
    [
        {"conv_bias": True},
        {"gru_rel_pos": False},
        {"deep_norm": False},
        {"encoder_layers": 1},
        {"encoder_layers": 3, "dropout": 0.1, "attention_dropout": 0.2, "activation_dropout": 0.3},
    ],
    ids=lambda cfg: next(iter(cfg)),
)
def test_other_architectures_convert_as_their_cfg_says(tmp_path: Path, cfg: dict) -> None:
    checkpoint = beats_checkpoint(**cfg)
    config = load_original(saved(tmp_path, checkpoint)).config
    assert config.conv_bias == checkpoint["cfg"]["conv_bias"]
    assert config.gated_position_bias == checkpoint["cfg"]["gru_rel_pos"]
    assert config.deep_norm == checkpoint["cfg"]["deep_norm"]
    assert config.num_hidden_layers == checkpoint["cfg"]["encoder_layers"]
    assert config.hidden_dropout == checkpoint["cfg"]["dropout"]
    assert config.attention_dropout == checkpoint["cfg"]["attention_dropout"]
    assert config.activation_dropout == checkpoint["cfg"]["activation_dropout"]


def test_labels_come_from_the_label_dict() -> None:
    model = load_original(FIXTURES / "finetuned.pt", head=True)
    assert isinstance(model, BeatsForAudioClassification)
    assert model.config.id2label == {index: f"/m/{index:05d}" for index in range(7)}
    assert model.config.label2id["/m/00003"] == 3


def test_a_fine_tuned_checkpoint_gives_its_encoder_without_the_head() -> None:
    encoder = load_original(FIXTURES / "finetuned.pt")
    classifier = load_original(FIXTURES / "finetuned.pt", head=True)
    assert isinstance(encoder, BeatsModel)
    for name, tensor in classifier.beats.state_dict().items():
        assert torch.equal(tensor, encoder.state_dict()[name]), name


def test_half_precision_files_become_float32(tmp_path: Path) -> None:
    checkpoint = beats_checkpoint()
    checkpoint["model"] = {key: value.half() for key, value in checkpoint["model"].items()}
    model = load_original(saved(tmp_path, checkpoint))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_cfg_field_that_no_encoder_reads_is_named_and_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved(tmp_path, beats_checkpoint(code_revision="x"))
    with caplog.at_level(logging.WARNING):
        load_original(path)
    assert "'code_revision'" in caplog.text


# --- What is refused --------------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt does not exist"):
        load_original(tmp_path / "nowhere.pt")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.pt"
    path.touch()
    with pytest.raises(ValueError, match=r"empty\.pt is empty"):
        load_original(path)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, share: float) -> None:
    path = tmp_path / "cut.pt"
    content = (FIXTURES / "pretrained.pt").read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"is cut off\. Download it again"):
        load_original(path)


@pytest.mark.parametrize(
    "content",
    [
        b"<!DOCTYPE html><html>Link expired</html>",
        b"\x00" * 1000,
        b"not a checkpoint\n",
        b"P",
        b"\x80",
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "page.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"page\.pt .*(cannot be read as a|is no) checkpoint"):
        load_original(path)


class Payload:
    """Runs code when unpickled without care."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.marker,))


def test_a_pickled_object_is_refused_and_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    path = saved(tmp_path, beats_checkpoint() | {"extra": Payload(marker)})
    with pytest.raises(
        ValueError, match=r"unpickling anything else can run code\. It holds .*'pathlib\.Path'"
    ):
        load_original(path)
    assert not marker.exists()


def test_a_folder_is_refused_with_the_right_call(tmp_path: Path) -> None:
    save_converted(FIXTURES / "pretrained.pt", tmp_path / "ours")
    with pytest.raises(ValueError, match=r"It has a config\.json: load it with from_pretrained"):
        load_original(tmp_path / "ours")
    with pytest.raises(ValueError, match=r"Give the \.pt file inside"):
        load_original(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no model\.safetensors; it has 'config\.json', 'ours'"):
        load_original(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read\. Download it again"):
        load_original(tmp_path)
    for text, said in (("<html>", "is no JSON"), ("[]", "holds a list, where a dict was due")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=rf"config\.json {said}"):
            load_original(tmp_path)


def test_what_fairseqs_trainer_stores_is_read(tmp_path: Path) -> None:
    extra = {"args": argparse.Namespace(lr=1.0), "best": np.float64(0.5), "loss": np.float32(2)}
    path = saved(tmp_path, beats_checkpoint() | extra)
    assert {key: read_checkpoint(path)[key] for key in extra} == extra


@pytest.mark.parametrize(
    ("content", "described"),
    [
        (beats_checkpoint()["model"], "a dict of .* with the keys 'post_extract_proj.weight'"),
        (torch.zeros(2, 3), r"a tensor of shape \(2, 3\)"),
        ([1, 2], "a list"),
        ({"cfg": [], "model": {}}, "a list under 'cfg'"),
    ],
    ids=["bare state dict", "tensor", "list", "cfg list"],
)
def test_another_layout_is_refused(tmp_path: Path, content: Any, described: str) -> None:
    with pytest.raises(ValueError, match=f"holds {described}"):
        load_original(saved(tmp_path, content))


def test_another_network_is_refused_with_its_first_keys(tmp_path: Path) -> None:
    checkpoint = {"cfg": {}, "model": {f"module.{i}": torch.zeros(1) for i in range(9)}}
    with pytest.raises(
        ValueError, match=r"no known encoder \(beats, .*\).*'module\.0'.* and 4 more"
    ):
        load_original(saved(tmp_path, checkpoint))


def test_a_tokenizer_is_refused(tmp_path: Path) -> None:
    checkpoint = beats_checkpoint()
    checkpoint["model"] |= {
        "quantize.embedding.weight": torch.zeros(1024, 256),
        "quantize.embedding.initted": torch.ones(1, dtype=torch.int64),
        "quantize_layer.0.weight": torch.zeros(32, 32),
    }
    with pytest.raises(
        ValueError, match=r"is a BEATs tokenizer: it has 'quantize\.embedding\.weight'"
    ):
        load_original(saved(tmp_path, checkpoint))


def test_a_missing_and_an_unknown_tensor_are_named(tmp_path: Path) -> None:
    checkpoint = beats_checkpoint()
    state = checkpoint["model"]
    state["encoder.layers.0.fc9.weight"] = state.pop("encoder.layers.0.fc1.weight")
    with pytest.raises(
        ValueError,
        match=r"missing 'encoder\.layers\.0\.fc1\.weight', unknown 'encoder\.layers\.0\.fc9",
    ):
        load_original(saved(tmp_path, checkpoint))


def test_every_tensor_is_needed(tmp_path: Path) -> None:
    complete = beats_checkpoint(num_classes=3, encoder_layers=1)
    for key in complete["model"]:
        state = {name: tensor for name, tensor in complete["model"].items() if name != key}
        with pytest.raises(
            ValueError, match=key.replace(".", r"\.") if "predictor" not in key else "predictor"
        ):
            CONVERTERS["beats"].convert(complete | {"model": state}, True)


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    checkpoint = beats_checkpoint()
    checkpoint["cfg"]["encoder_ffn_embed_dim"] = 65
    with pytest.raises(
        ValueError, match=r"fc1\.weight has the shape \(64, 32\); cfg asks for \(65, 32\)"
    ):
        load_original(saved(tmp_path, checkpoint))


def test_a_predictor_of_another_shape_is_refused(tmp_path: Path) -> None:
    checkpoint = beats_checkpoint(num_classes=3)
    checkpoint["model"]["predictor.weight"] = torch.zeros(3, 31)
    with pytest.raises(ValueError, match="The predictor does not fit"):
        load_original(saved(tmp_path, checkpoint), head=True)


def test_position_biases_that_differ_are_refused(tmp_path: Path) -> None:
    checkpoint = beats_checkpoint()
    checkpoint["model"][SHARED_BIAS.format(1)] = checkpoint["model"][SHARED_BIAS.format(1)] + 1e-3
    with pytest.raises(ValueError, match="position bias of layer 1 differs from that of layer 0"):
        load_original(saved(tmp_path, checkpoint))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layer_norm_first", True),
        ("activation_fn", "relu"),
        ("relative_position_embedding", False),
    ],
)
def test_an_unsupported_architecture_is_refused_by_name(
    tmp_path: Path, field: str, value: Any
) -> None:
    with pytest.raises(ValueError, match=f"cfg says {field}={value!r}"):
        load_original(saved(tmp_path, beats_checkpoint(**{field: value})))


@pytest.mark.parametrize("field", ["deep_norm", "max_distance", "layer_norm_first"])
def test_a_cfg_is_never_filled_up_with_defaults(tmp_path: Path, field: str) -> None:
    checkpoint = beats_checkpoint()
    del checkpoint["cfg"][field]
    with pytest.raises(ValueError, match=f"cfg lacks '{field}'"):
        load_original(saved(tmp_path, checkpoint))


@pytest.mark.parametrize(
    "cfg",
    [
        {"max_distance": "far"},
        {"dropout": None},
        {"encoder_attention_heads": 5},
        {"conv_pos_groups": 5},
        {"input_patch_size": -1},
        {"encoder_layers": 0},
    ],
    ids=lambda cfg: next(iter(cfg)),
)
def test_a_cfg_that_describes_no_encoder_is_refused(tmp_path: Path, cfg: dict) -> None:
    checkpoint = beats_checkpoint()
    checkpoint["cfg"] |= cfg
    with pytest.raises(ValueError, match="cfg does not describe a BEATs encoder"):
        load_original(saved(tmp_path, checkpoint))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.full((32,), torch.nan), "values that are not finite"),
        (torch.zeros(32, dtype=torch.int64), "of torch.int64"),
        ("text", "a str under 'encoder.layer_norm.bias'"),
    ],
    ids=["nan", "int64", "text"],
)
def test_a_value_that_is_no_weight_is_named(tmp_path: Path, value: Any, said: str) -> None:
    checkpoint = beats_checkpoint()
    checkpoint["model"]["encoder.layer_norm.bias"] = value
    with pytest.raises(ValueError, match=said):
        load_original(saved(tmp_path, checkpoint))


def test_a_head_is_not_invented() -> None:
    with pytest.raises(ValueError, match="head=True, but this checkpoint is pre-trained only"):
        load_original(FIXTURES / "pretrained.pt", head=True)


def test_labels_that_do_not_fit_the_predictor_are_refused(tmp_path: Path) -> None:
    checkpoint = beats_checkpoint(num_classes=3)
    del checkpoint["label_dict"][1]
    with pytest.raises(ValueError, match="the predictor's 3 classes need the indices 0 to 2"):
        load_original(saved(tmp_path, checkpoint), head=True)


# --- The command ------------------------------------------------------------------------------

REMOTE_CODE = """
import sys, torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel
folder, waveform, output = sys.argv[1:]
assert not any(name.split(".")[0] in ("modeling", "nearfar") for name in sys.modules)
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
with torch.no_grad():
    hidden_states = model(load_file(waveform)["waveform"]).last_hidden_state
save_file({"hidden_states": hidden_states}, output)
"""


@pytest.mark.slow
def test_the_command_writes_a_folder_that_runs_without_nearfar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "beats"
    argv = ["convert", str(FIXTURES / "pretrained.pt"), "--output_dir", str(folder)]
    monkeypatch.setattr(sys, "argv", argv)
    main()
    assert "BeatsModel, 87,028 parameters" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["beats"]  # nothing left behind
    waveform = load_file(FIXTURES / "io.safetensors")["wav_long"]
    with torch.no_grad():
        expected = BeatsModel.from_pretrained(folder)(waveform).last_hidden_state
    save_file({"waveform": waveform}, tmp_path / "waveform.safetensors")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run_without_nearfar(
        REMOTE_CODE, folder, tmp_path / "waveform.safetensors", "out", folder=elsewhere
    )
    assert torch.equal(load_file(elsewhere / "out")["hidden_states"], expected)


def test_the_command_keeps_the_head_on_request(tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "new" / "classifier"
    argv = ["convert", str(FIXTURES / "finetuned.pt"), "--output_dir", str(folder), "--head"]
    monkeypatch.setattr(sys, "argv", argv)
    main()
    io = load_file(FIXTURES / "io.safetensors")
    model = BeatsForAudioClassification.from_pretrained(folder)
    with torch.no_grad():
        torch.testing.assert_close(
            model(io["wav"]).logits.sigmoid(), io["probs"], rtol=0, atol=1e-4
        )
    assert model.config.id2label[2] == "/m/00002"


def test_a_folder_that_is_not_empty_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "kept.txt").write_text("kept")
    with pytest.raises(FileExistsError, match="is not an empty folder"):
        save_converted(FIXTURES / "pretrained.pt", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    save_converted(FIXTURES / "pretrained.pt", folder)
    assert (folder / "model.safetensors").exists()


def test_a_failed_conversion_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    target = tmp_path / "beats"
    with pytest.raises(ValueError, match="pre-trained only"):
        save_converted(FIXTURES / "pretrained.pt", target, head=True)

    def full_disk(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(BeatsModel, "save_pretrained", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_converted(FIXTURES / "pretrained.pt", target)
    assert not list(tmp_path.iterdir())


def test_the_command_ends_with_the_message_alone(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["convert", str(tmp_path / "x.pt"), "--output_dir", "y"])
    with pytest.raises(SystemExit, match=r"error: .*x\.pt does not exist"):
        main()


@pytest.mark.slow
def test_a_base_size_checkpoint_goes_all_the_way(tmp_path: Path) -> None:
    path = write_beats_checkpoint(tmp_path / "BEATs_iter3.pt", base=True)
    model = save_converted(path, tmp_path / "beats")
    path.unlink()
    assert model.num_parameters() == 90_311_792
    reloaded = BeatsModel.from_pretrained(tmp_path / "beats")
    shutil.rmtree(tmp_path / "beats")
    clip = 0.1 * torch.randn(1, 160_000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = reloaded(clip).last_hidden_state
        assert torch.equal(output, model(clip).last_hidden_state)
    assert output.shape == (1, 496, 768)
    assert torch.isfinite(output).all()
