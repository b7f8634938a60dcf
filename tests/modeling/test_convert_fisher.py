import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling.convert_fisher import convert_fisher
from modeling.convert_original import load_original, main, recognise, save_converted
from modeling.modeling_fisher import FisherModel
from modeling.original_checkpoint import read_checkpoint
from tests.modeling.fresh_process import run_without_nearfar

FIXTURES = Path(__file__).parents[1] / "fixtures" / "fisher"
IMAGE = "modality_encoders.IMAGE"


def authors_checkpoint(*, image: dict[str, Any] | None = None, **cfg: Any) -> dict[str, Any]:
    """Return the fixture's checkpoint; keyword arguments override fields of its cfg."""
    checkpoint: Any = read_checkpoint(FIXTURES / "fisher.pt")
    checkpoint["cfg"]["model"] |= cfg
    checkpoint["cfg"]["model"]["modalities"]["image"] |= image or {}
    return checkpoint


def saved(folder: Path, content: Any) -> Path:
    path = folder / "fisher.pt"
    torch.save(content, path)
    return path


# --- What is converted ------------------------------------------------------------------------


def test_every_tensor_of_the_authors_arrives() -> None:
    model = load_original(FIXTURES / "fisher.pt")
    theirs = authors_checkpoint()["model"].values()
    ours = model.state_dict().values()
    # The fixture's weights are random: a tensor's sum identifies it.
    assert sorted(t.double().sum().item() for t in theirs) == sorted(
        t.double().sum().item() for t in ours
    )
    meta = json.loads((FIXTURES / "meta.json").read_text())
    assert model.num_parameters() == meta["params_trainable"]


def test_the_configuration_is_the_checkpoints_own() -> None:
    model = load_original(FIXTURES / "fisher.pt")
    assert isinstance(model, FisherModel)
    assert not model.training
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (48, 2, 4)
    assert (config.intermediate_size, config.layer_norm_eps) == (192, 1e-6)
    assert (config.band_width, config.max_length, config.max_freq) == (50, 6, 50)
    assert config.flatten == "freq"
    assert config.target_length is None  # 1024 in the cfg: what they trained with


@pytest.mark.parametrize(
    ("cfg", "image", "fields"),
    [
        ({"band_width": 100}, {"band_width": 100}, {"band_width": 100}),
        ({}, {"flatten": "time"}, {"flatten": "time"}),
        ({}, {"max_length": 10, "max_freq": 30}, {"max_length": 10, "max_freq": 30}),
        (
            {"num_heads": 2, "norm_eps": 1e-5},
            {},
            {"num_attention_heads": 2, "layer_norm_eps": 1e-5},
        ),
        (
            {"encoder_dropout": 0.1, "attention_dropout": 0.2, "activation_dropout": 0.3},
            {},
            {"hidden_dropout": 0.1, "attention_dropout": 0.2, "activation_dropout": 0.3},
        ),
        (
            {"dropout_input": 0.4, "layerdrop": 0.5},
            {},
            {"input_dropout": 0.4, "layerdrop": 0.5},
        ),
    ],
    ids=["band_width", "flatten", "grid", "heads", "dropouts", "input"],
)
def test_other_architectures_convert_as_their_cfg_says(
    tmp_path: Path, cfg: dict, image: dict, fields: dict
) -> None:
    config = load_original(saved(tmp_path, authors_checkpoint(image=image, **cfg))).config
    assert {name: getattr(config, name) for name in fields} == fields


def test_the_stored_position_table_is_read_and_not_recomputed(tmp_path: Path) -> None:
    checkpoint = authors_checkpoint()
    table = torch.randn(1, 300, 48)
    checkpoint["model"][f"{IMAGE}.fixed_positional_encoder.positions"] = table
    model = load_original(saved(tmp_path, checkpoint))
    assert torch.equal(model.embedding.positions, table)
    model.save_pretrained(tmp_path / "ours")
    assert torch.equal(FisherModel.from_pretrained(tmp_path / "ours").embedding.positions, table)


def test_a_fisher_is_told_from_an_eat_by_its_cfg() -> None:
    checkpoint = authors_checkpoint()
    assert recognise(checkpoint) == "fisher"
    del checkpoint["cfg"]["model"]["band_width"]
    del checkpoint["cfg"]["model"]["modalities"]["image"]["band_width"]
    assert recognise(checkpoint) == "eat"


def test_half_precision_files_become_float32(tmp_path: Path) -> None:
    checkpoint = authors_checkpoint()
    checkpoint["model"] = {key: value.half() for key, value in checkpoint["model"].items()}
    model = load_original(saved(tmp_path, checkpoint))
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}


def test_what_is_not_kept_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = authors_checkpoint(
        code_revision="x", post_mlp_drop=0.25, image={"mask_prob": 0.8, "target_length": 512}
    )
    with caplog.at_level(logging.WARNING):
        load_original(saved(tmp_path, checkpoint))
    assert "no FISHER encoder reads: 'code_revision', 'image.mask_prob'" in caplog.text
    assert "post_mlp_drop=0.25 is not kept" in caplog.text


def test_the_authors_own_cfg_raises_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_original(FIXTURES / "fisher.pt")
    assert not caplog.records


# --- What is refused --------------------------------------------------------------------------


def test_a_head_is_not_invented() -> None:
    with pytest.raises(ValueError, match="FISHER has no head"):
        load_original(FIXTURES / "fisher.pt", head=True)


def test_every_tensor_is_needed() -> None:
    complete = authors_checkpoint()
    for key in complete["model"]:
        state = {name: tensor for name, tensor in complete["model"].items() if name != key}
        with pytest.raises(ValueError, match=rf"missing '{key}', unknown none".replace(".", r"\.")):
            convert_fisher(complete | {"model": state}, False)


def test_an_unknown_tensor_is_named(tmp_path: Path) -> None:
    checkpoint = authors_checkpoint()
    checkpoint["model"]["blocks.2.norm1.weight"] = torch.ones(48)
    with pytest.raises(ValueError, match=r"missing none, unknown 'blocks\.2\.norm1\.weight'"):
        load_original(saved(tmp_path, checkpoint))


@pytest.mark.parametrize(
    ("cfg", "image", "said"),
    [
        ({"mlp_ratio": 2.0}, {}, r"mlp\.fc1\.weight has the shape \(192, 48\); .* \(96, 48\)"),
        ({}, {"max_length": 128}, r"positions has the shape \(1, 300, 48\); .* \(1, 6400, 48\)"),
        (
            {},
            {"patch_size": 8},
            r"proj\.weight has the shape \(48, 1, 16, 16\); .* \(48, 1, 8, 8\)",
        ),
    ],
    ids=["mlp_ratio", "max_length", "patch_size"],
)
def test_a_tensor_of_another_shape_is_named(
    tmp_path: Path, cfg: dict, image: dict, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        load_original(saved(tmp_path, authors_checkpoint(image=image, **cfg)))


@pytest.mark.parametrize(
    ("cfg", "image", "said"),
    [
        ({"layer_norm_first": True}, {}, "cfg says layer_norm_first=True; only"),
        ({"norm_affine": False}, {}, "cfg says norm_affine=False; only"),
        ({}, {"prenet_depth": 2}, r"cfg says image\.prenet_depth=2; only"),
        ({}, {"num_extra_tokens": 0}, r"cfg says image\.num_extra_tokens=0; only"),
        ({}, {"fixed_positions": False}, r"cfg says image\.fixed_positions=False; only"),
        ({"band_width": 100}, {}, "cfg says band_width=100, but 50 in modalities.image"),
        ({}, {"embed_dim": 96}, "cfg says embed_dim=48, but 96 in modalities.image"),
    ],
    ids=lambda value: next(iter(value), "") if isinstance(value, dict) else "",
)
def test_an_unsupported_architecture_is_refused_by_name(
    tmp_path: Path, cfg: dict, image: dict, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        load_original(saved(tmp_path, authors_checkpoint(image=image, **cfg)))


@pytest.mark.parametrize(
    "field",
    ["embed_dim", "depth", "num_heads", "norm_eps", "mlp_ratio", "layer_norm_first"],
)
def test_a_cfg_is_never_filled_up_with_defaults(tmp_path: Path, field: str) -> None:
    checkpoint = authors_checkpoint()
    del checkpoint["cfg"]["model"][field]
    with pytest.raises(ValueError, match=f"cfg lacks '{field}'"):
        load_original(saved(tmp_path, checkpoint))


@pytest.mark.parametrize("field", ["patch_size", "max_length", "max_freq", "flatten"])
def test_what_cfg_says_of_patches_is_needed(tmp_path: Path, field: str) -> None:
    checkpoint = authors_checkpoint()
    del checkpoint["cfg"]["model"]["modalities"]["image"][field]
    with pytest.raises(ValueError, match=rf"cfg lacks 'image\.{field}'"):
        load_original(saved(tmp_path, checkpoint))


def test_the_band_width_is_needed() -> None:
    checkpoint = authors_checkpoint()
    del checkpoint["cfg"]["model"]["band_width"]
    with pytest.raises(ValueError, match="cfg lacks 'band_width'"):
        convert_fisher(checkpoint, False)


def test_a_cfg_without_modalities_is_refused(tmp_path: Path) -> None:
    checkpoint = authors_checkpoint()
    del checkpoint["cfg"]["model"]["modalities"]
    with pytest.raises(ValueError, match="those of its patches under 'modalities'"):
        load_original(saved(tmp_path, checkpoint))


@pytest.mark.parametrize(
    ("cfg", "image"),
    [
        ({"depth": 0}, {}),
        ({"num_heads": 5}, {}),
        ({"norm_eps": "tiny"}, {}),
        ({"layerdrop": None}, {}),
        ({"band_width": 8}, {"band_width": 8}),
        ({"band_width": "${model.band_width}"}, {"band_width": "${model.band_width}"}),
        ({}, {"flatten": "both"}),
        ({}, {"patch_size": 0}),
        ({}, {"max_length": -1}),
    ],
    ids=lambda value: next(iter(value), ""),
)
def test_a_cfg_that_describes_no_encoder_is_refused(tmp_path: Path, cfg: dict, image: dict) -> None:
    with pytest.raises(ValueError, match="cfg does not describe a FISHER encoder"):
        load_original(saved(tmp_path, authors_checkpoint(image=image, **cfg)))


def test_a_weight_that_is_not_finite_is_named(tmp_path: Path) -> None:
    checkpoint = authors_checkpoint()
    checkpoint["model"]["blocks.1.norm2.bias"] = torch.full((48,), torch.nan)
    with pytest.raises(ValueError, match=r"blocks\.1\.norm2\.bias holds values that are not"):
        load_original(saved(tmp_path, checkpoint))


# --- The command ------------------------------------------------------------------------------

REMOTE_CODE = """
import sys, torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel
folder, waveform, output = sys.argv[1:]
assert not any(name.split(".")[0] in ("modeling", "nearfar") for name in sys.modules)
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
with torch.no_grad():
    embedding = model(load_file(waveform)["waveform"], sampling_rate=44100).pooler_output
save_file({"embedding": embedding}, output)
"""


@pytest.mark.slow
def test_the_command_writes_a_folder_that_runs_without_nearfar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "fisher"
    argv = ["convert", str(FIXTURES / "fisher.pt"), "--output_dir", str(folder)]
    monkeypatch.setattr(sys, "argv", argv)
    main()
    assert "FisherModel, 69,024 parameters" in capsys.readouterr().out
    io = load_file(FIXTURES / "io.safetensors")
    save_file({"waveform": io["wav_44100"][None]}, tmp_path / "waveform.safetensors")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run_without_nearfar(
        REMOTE_CODE, folder, tmp_path / "waveform.safetensors", "out", folder=elsewhere
    )
    embedding = load_file(elsewhere / "out")["embedding"]
    torch.testing.assert_close(embedding, io["embedding_44100"], rtol=0, atol=1e-4)


def test_a_failed_conversion_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="FISHER has no head"):
        save_converted(FIXTURES / "fisher.pt", tmp_path / "fisher", head=True)
    assert not list(tmp_path.iterdir())
