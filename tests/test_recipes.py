"""Every recipe runs, at tiny size, from its values to scores."""

import json
from pathlib import Path

import pytest
import yaml

import score
import train
from modeling import AsdConfig
from nearfar.arguments import read_recipe
from tests.scripts import run_script
from tests.tiny import TINY_EAT, TINY_ENCODER

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted(  # those of the baselines: tests/test_train_autoencoder.py
    path for path in (ROOT / "recipes").glob("*.yaml") if not path.stem.startswith("baseline")
)
# A folder of three machines cannot be as deep and long as a recipe wants.
SMALL = {"nearfar_beats": TINY_ENCODER, "nearfar_eat": TINY_EAT}
HASTE = ["--max_steps", 2, "--train_batch_size", 4, "--gradient_accumulation_steps", 2]
HASTE += ["--train_subsets", "dev", "--held_out_share", 0.2, "--warmup_steps", 1]


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_a_recipe_is_trained_and_scored_at_tiny_size(
    path, factory_dir, tmp_path, monkeypatch
) -> None:
    values = read_recipe(train.TrainArguments, path)
    kind = values.get("encoder_type") or (values.get("encoder_config") or {}).get("model_type")
    encoder = small_encoder(kind or "nearfar_beats", max(values.get("layers") or [2]))
    run, scores = tmp_path / "run", tmp_path / "scores"
    words = ["--recipe", path, "--data_dir", factory_dir, "--output_dir", run, *HASTE]
    run_script(train, [*words, "--encoder_config", json.dumps(encoder)], monkeypatch)
    config = AsdConfig.from_pretrained(run)
    for name in ("front_end", "pooling", "layers", "head", "detector", "scored_pooling"):
        if name in values and not values.get("no_training"):
            assert getattr(config, name) == values[name]
    resolved = yaml.safe_load((run / "recipe.yaml").read_text())
    assert {name: resolved[name] for name in values if name not in changed()} == {
        name: value for name, value in values.items() if name not in changed()
    }
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["num_classes"] >= 2
    assert (metrics["guard"] is None) is (values.get("guard", "none") == "none")
    run_script(
        score, ["--model", run, "--data_dir", factory_dir, "--output_dir", scores], monkeypatch
    )
    assert 0 < json.loads((scores / "metrics.json").read_text())["official_score"] < 1


def small_encoder(kind: str, num_layers: int) -> dict:
    """Return the configuration of a small encoder of a kind."""
    if kind == "nearfar_noise_aware":
        return {"model_type": kind, "encoder_config": small_encoder("nearfar_beats", num_layers)}
    return SMALL[kind] | {"num_hidden_layers": num_layers}


def changed() -> set[str]:
    """Return the arguments that this test gives."""
    return {word[2:] for word in HASTE if str(word).startswith("--")} | {"encoder_config"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            [],
            "takes a pre-trained encoder of type 'nearfar_eat', but encoder_checkpoint is missing",
        ),
        (
            ["--encoder_config", json.dumps(TINY_ENCODER)],
            "of type 'nearfar_eat', but .* gives a 'nearfar_beats'",
        ),
    ],
    ids=["none", "another"],
)
def test_a_recipe_wants_its_own_encoder(words, message, factory_dir, tmp_path, monkeypatch) -> None:
    words = ["--recipe", ROOT / "recipes" / "unis_1.yaml", "--data_dir", factory_dir, *words]
    words += ["--output_dir", tmp_path / "run", "--train_subsets", "dev"]
    with pytest.raises(ValueError, match=message):
        run_script(train, words, monkeypatch)
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_a_reports_recipe_says_of_its_values_whence_they_are(path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.stem.startswith(("unis", "xju")):
        assert "# report" in text
        assert "# chosen" in text
