"""What may be given as a pre-trained encoder, and the answer to what may not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from assembly.encoders import build_encoder, load_encoder
from modeling import EatModel
from nearfar.training_arguments import TrainArguments
from tests.tiny import TINY_EAT, TINY_ENCODER


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny EAT's folder."""
    config = {name: value for name, value in TINY_EAT.items() if name != "model_type"}
    EatModel(AutoConfig.for_model("nearfar_eat", **config)).save_pretrained(tmp_path / "eat")
    return tmp_path / "eat"


def given(path: Path, **values: object) -> TrainArguments:
    return TrainArguments(output_dir=Path("run"), encoder_checkpoint=path, **values)


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def of_type(model_type: object) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"model_type": model_type}))

    return rewrite


def wider(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 24}))


def cut_short(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def without_a_weight(folder: Path) -> None:
    kept = load_file(folder / "model.safetensors")
    del kept["layers.1.fc2.weight"]
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def no_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def a_text(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("not a checkpoint")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (shutil.rmtree, "There is no encoder checkpoint"),
        (emptied, "a folder without a config.json"),
        (no_json, "config.json is not valid JSON"),
        (of_type("nearfar_asd"), "holds a 'nearfar_asd', not one of .* Of a run folder give"),
        (of_type("wav2vec2"), "of no known encoder"),
        (of_type(3), "of no known encoder"),
        (wider, "are damaged, or of other sizes than its config.json"),
        (cut_short, "are damaged, or of other sizes than its config.json"),
        (without_a_weight, r"lacks 1 weights, 'layers\.1\.fc2\.weight'"),
        (a_text, r"eat \(16 bytes\)"),
    ],
)
def test_what_is_no_encoder_is_refused_by_its_path_in_one_line(
    spoil: Callable[[Path], None], message: str, folder: Path
) -> None:
    spoil(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load_encoder(given(folder))
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_encoder_comes_back_with_its_weights_and_without_its_place(folder: Path) -> None:
    encoder = load_encoder(given(folder))
    saved = load_file(folder / "model.safetensors")
    assert all(torch.equal(tensor, saved[name]) for name, tensor in encoder.state_dict().items())
    assert encoder.config.name_or_path == ""


def test_an_encoder_hears_as_many_frames_as_its_authors_let_it(folder: Path) -> None:
    assert build_encoder(given(folder)).config.target_length is None
    encoder = build_encoder(given(folder, target_length=32))
    assert encoder.patch_grid(16_000)[0] == encoder.patch_grid(3_000)[0] == 32 / 16
    with pytest.raises(ValueError, match="target_length=33 is not a multiple of patch_size=16"):
        build_encoder(given(folder, target_length=33))
    args = TrainArguments(output_dir=Path("run"), encoder_config=TINY_ENCODER, target_length=32)
    with pytest.raises(ValueError, match="is for EAT and FISHER; a 'nearfar_beats' hears any"):
        build_encoder(args)
