import copy
import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from modeling.convert_original import CONVERTERS, load_original, main, recognise
from modeling.modeling_eat import EatForAudioClassification, EatModel, sine_positions
from modeling.original_checkpoint import read_checkpoint

FIXTURES = Path(__file__).parents[1] / "fixtures" / "eat"
BEATS = Path(__file__).parents[1] / "fixtures" / "beats"
IMAGE = "modality_encoders.IMAGE."
FORMS = {
    "pretrained": FIXTURES / "pretrained_fairseq.pt",
    "finetuned": FIXTURES / "finetuned_fairseq.pt",
    "port": FIXTURES / "hf_finetune",
}


@pytest.fixture(scope="module")
def originals() -> dict[str, Any]:
    return {name: read_checkpoint(path) for name, path in FORMS.items()}


@pytest.fixture
def original(originals):
    """Return a function that hands out a checkpoint to be spoilt."""
    return lambda name: copy.deepcopy(dict(originals[name]))


def convert(checkpoint: dict[str, Any], *, head: bool = False) -> EatModel:
    assert recognise(checkpoint) == "eat"
    return CONVERTERS["eat"].convert(checkpoint, head)


def model_cfg(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return where a checkpoint says what the encoder is like."""
    cfg = checkpoint["cfg"]
    if "model" not in cfg:
        return cfg
    return cfg["model"].get("pretrained_model_args", cfg)["model"]


def sums(tensors: Any) -> list[float]:
    """Return what identifies random tensors whatever their names."""
    return sorted(tensor.double().sum().item() for tensor in tensors)


# --- What is converted ------------------------------------------------------------------------


def test_every_tensor_of_the_authors_arrives(originals) -> None:
    for name in ("finetuned", "port"):
        model = load_original(FORMS[name], head=True)
        assert isinstance(model, EatForAudioClassification)
        assert sums(model.state_dict().values()) == sums(originals[name]["model"].values())
    theirs = originals["pretrained"]["model"]
    student = [t for key, t in theirs.items() if key != "_ema" and "decoder" not in key]
    model = load_original(FORMS["pretrained"])
    assert sums(model.state_dict().values()) == sums(student)
    counts = json.loads((FIXTURES / "meta.json").read_text())
    assert model.num_parameters() == counts["params_encoder_trainable"]
    assert sum(t.numel() for t in model.state_dict().values()) == counts["params_encoder"]


def test_the_student_is_converted_not_the_teacher(originals) -> None:
    state = originals["pretrained"]["model"]
    key = "blocks.1.mlp.fc1.weight"
    assert not torch.equal(state[key], state["_ema"][key])
    assert torch.equal(load_original(FORMS["pretrained"]).layers[1].fc1.weight, state[key])


@pytest.mark.parametrize("name", FORMS)
def test_the_configuration_is_the_checkpoints_own(name: str) -> None:
    model = load_original(FORMS[name])
    assert isinstance(model, EatModel)
    assert not model.training
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (48, 2, 4)
    assert (config.intermediate_size, config.max_length) == (192, 72)
    assert config.target_length is None
    assert config.layer_norm_eps == 1e-6
    assert config.head_norm_eps == (1e-5 if name == "port" else 1e-6)


def test_all_layouts_of_a_model_give_the_same_encoder() -> None:
    states = [load_original(path).state_dict() for path in FORMS.values()]
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        assert all(torch.equal(tensor, states[0][name]) for name, tensor in state.items())


def test_the_classifier_has_as_many_labels_as_its_head() -> None:
    config = load_original(FORMS["finetuned"], head=True).config
    assert config.num_labels == 7
    assert config.problem_type == "multi_label_classification"


@pytest.mark.parametrize("time", [64, 128])
def test_the_position_table_says_its_own_size(original, time: int) -> None:
    checkpoint = original("pretrained")  # whose cfg says max_length 72
    table = torch.from_numpy(sine_positions(time, 8, 48))[None] + 0.5
    checkpoint["model"][f"{IMAGE}fixed_positional_encoder.positions"] = table
    model = convert(checkpoint)
    assert model.config.max_length == time
    assert torch.equal(model.embedding.positions, table)


@pytest.mark.parametrize("name", FORMS)
def test_what_acts_in_training_is_translated(original, name: str) -> None:
    checkpoint = original(name)
    cfg = checkpoint["cfg"] if name == "port" else checkpoint["cfg"]["model"]
    names = {
        "port": ("drop_rate", "attn_drop_rate", "activation_dropout"),
    }.get(name, ("encoder_dropout", "attention_dropout", "activation_dropout"))
    cfg |= dict(zip(names, (0.1, 0.2, 0.3), strict=True)) | {"post_mlp_drop": 0.1}
    config = convert(checkpoint).config
    dropouts = (config.hidden_dropout, config.attention_dropout, config.activation_dropout)
    assert dropouts == (0.1, 0.2, 0.3)


def test_a_dropout_without_a_counterpart_is_named(
    original, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = original("pretrained")
    checkpoint["cfg"]["model"]["post_mlp_drop"] = 0.4
    with caplog.at_level(logging.WARNING):
        assert convert(checkpoint).config.hidden_dropout == 0.0
    assert "post_mlp_drop=0.4 is not kept" in caplog.text


def test_a_dropout_that_the_cfg_leaves_out_is_none(
    original, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = original("pretrained")
    checkpoint["cfg"]["model"].pop("post_mlp_drop", None)
    checkpoint["cfg"]["model"]["encoder_dropout"] = 0.1
    with caplog.at_level(logging.WARNING):
        assert convert(checkpoint).config.hidden_dropout == 0.1
    assert "post_mlp_drop=0.0 is not kept: hidden_dropout=0.1" in caplog.text


def test_half_precision_files_become_float32(original) -> None:
    checkpoint = original("finetuned")
    checkpoint["model"] = {key: value.half() for key, value in checkpoint["model"].items()}
    model = convert(checkpoint, head=True)
    tensors = [*model.parameters(), *model.buffers()]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}


# --- What is refused --------------------------------------------------------------------------


def test_a_head_is_not_invented(original, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="head=True, but this checkpoint is pre-trained only"):
        load_original(FORMS["pretrained"], head=True)
    state = original("port")["model"]
    bare = {key: value for key, value in state.items() if ".head." not in key}
    bare = {key: value for key, value in bare.items() if ".fc_norm." not in key}
    save_file(bare, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((FORMS["port"] / "config.json").read_bytes())
    assert isinstance(load_original(tmp_path), EatModel)
    with pytest.raises(ValueError, match="head=True, but this checkpoint is pre-trained only"):
        load_original(tmp_path, head=True)


@pytest.mark.parametrize("name", FORMS)
def test_every_tensor_is_needed(originals, name: str) -> None:
    complete, head = originals[name], name != "pretrained"
    needed = [key for key in complete["model"] if key != "_ema" and "decoder" not in key]
    assert len(needed) == (34 if head else 30)
    for key in needed:
        state = {name: tensor for name, tensor in complete["model"].items() if name != key}
        with pytest.raises(ValueError, match=key.replace(".", r"\.")):
            CONVERTERS["eat"].convert(complete | {"model": state}, head)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("key", ["norm.weight", "blocks.2.norm1.weight", "decoder.proj.weight"])
def test_an_unknown_tensor_is_named(original, name: str, key: str) -> None:
    checkpoint = original(name)
    key = key if name == "pretrained" else f"model.{key}"
    checkpoint["model"][key] = torch.zeros(48)
    with pytest.raises(ValueError, match=rf"missing none, unknown '{key}'"):
        convert(checkpoint)


@pytest.mark.parametrize("name", FORMS)
def test_a_tensor_of_another_shape_is_named(original, name: str) -> None:
    checkpoint = original(name)
    model_cfg(checkpoint)["mlp_ratio"] = 3.0
    with pytest.raises(
        ValueError, match=r"fc1\.weight has the shape \(192, 48\); cfg asks for \(144, 48\)"
    ):
        convert(checkpoint)


@pytest.mark.parametrize("shape", [(576, 48), (1, 575, 48), (1, 0, 48), (1, 576, 24)])
def test_a_table_of_another_shape_is_named(original, shape: tuple[int, ...]) -> None:
    checkpoint = original("pretrained")
    checkpoint["model"][f"{IMAGE}fixed_positional_encoder.positions"] = torch.zeros(shape)
    with pytest.raises(ValueError, match="positions has the shape"):
        convert(checkpoint)


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("pretrained", "layer_norm_first", True),
        ("pretrained", "norm_affine", False),
        ("pretrained", "modalities.image.use_alibi_encoder", True),
        ("pretrained", "modalities.image.prenet_depth", 4),
        ("pretrained", "modalities.image.patch_size", 8),
        ("finetuned", "layer_norm_first", True),
        ("port", "layer_norm_first", True),
        ("port", "qkv_bias", False),
        ("port", "mel_bins", 64),
        ("port", "stride", 10),
    ],
)
def test_an_unsupported_architecture_is_refused_by_name(
    original, name: str, path: str, value: Any
) -> None:
    checkpoint = original(name)
    cfg = model_cfg(checkpoint)
    *parents, field = path.split(".")
    for parent in parents:
        cfg = cfg[parent]
    cfg[field] = value
    with pytest.raises(ValueError, match=f"cfg says {field}={value!r}; only"):
        convert(checkpoint)


@pytest.mark.parametrize(
    ("field", "value"), [("prediction_mode", "MEAN_POOLING"), ("use_fc_norm", False)]
)
def test_another_head_is_refused_by_name(original, field: str, value: Any) -> None:
    checkpoint = original("finetuned")
    checkpoint["cfg"]["model"][field] = value
    with pytest.raises(ValueError, match=f"cfg says {field}={value!r}; only"):
        convert(checkpoint, head=True)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("field", ["depth", "num_heads", "norm_eps", "layer_norm_first"])
def test_a_cfg_is_never_filled_up_with_defaults(original, name: str, field: str) -> None:
    checkpoint = original(name)
    del model_cfg(checkpoint)[field]
    with pytest.raises(ValueError, match=f"cfg lacks '{field}'"):
        convert(checkpoint)


@pytest.mark.parametrize("inner", [None, {}, {"model": None}])
def test_a_fine_tuned_cfg_without_that_of_pre_training_is_refused(original, inner: Any) -> None:
    checkpoint = original("finetuned")
    checkpoint["cfg"]["model"]["pretrained_model_args"] = inner
    with pytest.raises(ValueError, match="cfg lacks 'depth', 'embed_dim'"):
        convert(checkpoint)


@pytest.mark.parametrize(
    "cfg",
    [{"num_heads": 5}, {"depth": 0}, {"norm_eps": "small"}, {"depth": "deep"}, {"mlp_ratio": None}],
    ids=lambda cfg: str(cfg),
)
def test_a_cfg_that_describes_no_encoder_is_refused(original, cfg: dict) -> None:
    checkpoint = original("pretrained")
    checkpoint["cfg"]["model"] |= cfg
    with pytest.raises(ValueError, match="cfg does not describe an EAT encoder"):
        convert(checkpoint)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.full((48,), torch.nan), "values that are not finite"),
        ({"weight": torch.zeros(1)}, "has a dict of 1 .* under 'blocks.0.norm1.bias'"),
    ],
    ids=["nan", "dict"],
)
def test_a_value_that_is_no_weight_is_named(original, value: Any, said: str) -> None:
    checkpoint = original("pretrained")
    checkpoint["model"]["blocks.0.norm1.bias"] = value
    with pytest.raises(ValueError, match=said):
        convert(checkpoint)


def test_encoders_are_told_apart(original, originals) -> None:
    assert {recognise(checkpoint) for checkpoint in originals.values()} == {"eat"}
    assert recognise(read_checkpoint(BEATS / "pretrained.pt")) == "beats"
    fisher = original("pretrained")  # the same names, and sub-bands
    fisher["cfg"]["model"]["modalities"]["image"]["band_width"] = 50
    assert not CONVERTERS["eat"].recognises(fisher)
    other = original("port")
    other["cfg"]["model_type"] = "sslam"
    with pytest.raises(ValueError, match=r"no known encoder \(.*eat.*\)"):
        recognise(other)


def test_a_folder_without_its_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((FORMS["port"] / "config.json").read_bytes())
    with pytest.raises(ValueError, match=r"no model\.safetensors; it has 'config\.json'"):
        load_original(tmp_path)


# --- The command ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["finetuned", "port"])
def test_the_command_keeps_the_head_on_request(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    folder = tmp_path / "eat"
    argv = ["convert", str(FORMS[name]), "--output_dir", str(folder), "--head"]
    monkeypatch.setattr(sys, "argv", argv)
    main()
    assert "EatForAudioClassification, 69,463 parameters" in capsys.readouterr().out
    io: dict[str, Tensor] = load_file(FIXTURES / "io.safetensors")
    model = EatForAudioClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(io["wav"]).logits, io["logits_var"], rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match=r"a folder of ours, .* load it with from_pretrained"):
        load_original(folder)
