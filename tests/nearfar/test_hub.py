"""The run folder: complete or not there, readable by this version or refused."""

import errno
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from nearfar.arguments import parse_arguments, read_recipe
from nearfar.files import read_json, write_json
from nearfar.hub import FORMAT_VERSION, KINDS, model_card, read_run, write_run
from nearfar.training_arguments import TrainArguments, resolved_recipe

METRICS = {
    "official_score": None,
    "machines": {},
    "seed": 7,
    "recipe": "quickstart",
    "frozen_encoder": False,
    "guard": None,
    "num_classes": 12,
    "num_references": 345,
    "num_calibration": 38,
}
THRESHOLDS = {"2026/valve/00": 0.25, "2026/fan/00": 0.123456, "2026/fan/01": None}
CONFIG = SimpleNamespace(
    model_type="nearfar_asd",
    encoder_config=SimpleNamespace(
        model_type="nearfar_beats", hidden_size=192, num_hidden_layers=4
    ),
    front_end="complex_least_squares",
    pooling="mean",
    head="arcface",
    detector="knn",
)
RECIPE = {"year": 2026, "seed": 7, "encoder_checkpoint": "BEATs_iter3.pt", "layers": None}
RECIPE |= {"threshold": "gamma", "threshold_quantile": 0.95}


class Part:
    """Saves one file, as models, extractors and banks do."""

    config = CONFIG

    def __init__(self, file_name: str, *, error: Exception | None = None) -> None:
        self.file_name = file_name
        self.error = error

    def save_pretrained(self, folder: Path) -> None:
        (folder / self.file_name).write_text("saved")
        if self.error:
            raise self.error


def write(folder: Path, **changes: Any) -> None:
    parts = {
        "model": Part("model.safetensors"),
        "feature_extractor": Part("preprocessor_config.json"),
        "bank": Part("reference_bank.json"),
        "recipe": RECIPE,
        "metrics": METRICS,
        "thresholds": THRESHOLDS,
    }
    write_run(folder, **(parts | changes))


class Adapter:
    """Saves what PEFT saves, into a folder that it makes."""

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir()
        for name in ("adapter_config.json", "adapter_model.safetensors", "README.md"):
            (folder / name).write_text("saved")


def front_matter(card: str) -> dict[str, Any]:
    _, head, _ = re.split(r"^---$", card, maxsplit=2, flags=re.MULTILINE)
    values: dict[str, Any] = yaml.safe_load(head)
    return values


def test_a_run_folder_holds_every_part_and_its_marker(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a"
    write(folder)
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors",
        "preprocessor_config.json",
        "reference_bank.json",
        "recipe.yaml",
        "metrics.json",
        "README.md",
        "run.json",
    }
    assert read_run(folder) == {"format_version": FORMAT_VERSION, "kind": "model", "members": []}
    assert read_json(folder / "metrics.json") == METRICS
    assert yaml.safe_load((folder / "recipe.yaml").read_text()) == RECIPE
    assert (folder / "README.md").read_text() == model_card(CONFIG, RECIPE, METRICS, THRESHOLDS)


def test_an_adapter_lies_in_its_own_folder_and_leaves_with_its_run(tmp_path: Path) -> None:
    """Beside merged weights transformers would add it a second time."""
    write(tmp_path, adapter=Adapter())
    adapter = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert adapter == {"adapter_config.json", "adapter_model.safetensors"}
    assert not list(tmp_path.glob("adapter_*"))
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, bank=Part("b", error=OSError(errno.ENOSPC, "No space left on device")))
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == adapter
    write(tmp_path)  # a run without one
    assert not (tmp_path / "adapter").exists()


def test_the_states_of_the_training_are_left_alone(tmp_path: Path) -> None:
    state = tmp_path / "trainer_state" / "step_000001" / "model.safetensors"
    state.parent.mkdir(parents=True)
    state.write_text("state")
    write(tmp_path)
    write(tmp_path)  # and a second run into the same folder is no error
    assert state.read_text() == "state"


@pytest.mark.parametrize("part", ["model", "feature_extractor", "bank"])
def test_a_run_that_cannot_be_written_leaves_the_one_before(tmp_path: Path, part: str) -> None:
    write(tmp_path)
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    full = Part("half.safetensors", error=OSError(errno.ENOSPC, "No space left on device"))
    full.config = CONFIG
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, **{part: full}, metrics=METRICS | {"seed": 8})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before


def test_a_first_run_that_cannot_be_written_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, bank=Part("b", error=OSError(errno.ENOSPC, "No space left on device")))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError, match=r"holds no run\.json, so it is not a complete run"):
        read_run(tmp_path)


def test_a_folder_that_is_not_there_is_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere is not there, so it is not a complete"):
        read_run(tmp_path / "nowhere")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read_whatever_its_members(tmp_path: Path, kind: str) -> None:
    run = {"format_version": 1, "kind": kind, "members": ["a", "b"]}
    write_json(tmp_path / "run.json", run)
    assert read_run(tmp_path) == run


@pytest.mark.parametrize("run", [{"format_version": 1, "kind": "ensemble"}, {}, [], None, "model"])
def test_an_unknown_kind_is_refused_with_the_known_ones(tmp_path: Path, run: Any) -> None:
    write_json(tmp_path / "run.json", run)
    with pytest.raises(ValueError, match=r"run\.json must give a kind among \['model', "):
        read_run(tmp_path)


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 99, "2", None])
def test_a_newer_or_unknown_format_is_refused(tmp_path: Path, version: Any) -> None:
    write_json(tmp_path / "run.json", {"format_version": version, "kind": "model", "members": []})
    with pytest.raises(ValueError, match=rf"format version {version}, but .* Update nearfar"):
        read_run(tmp_path)


def test_a_run_without_a_format_version_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {"kind": "model"})
    with pytest.raises(ValueError, match="format version None"):
        read_run(tmp_path)


def test_the_card_names_every_machine_with_its_threshold() -> None:
    card = model_card(CONFIG, RECIPE, METRICS, THRESHOLDS)
    rows = re.findall(r"^\| (2026/\S+) \| (\S+) \|$", card, flags=re.MULTILINE)
    assert rows == [
        ("2026/fan/00", "0.1235"),
        ("2026/fan/01", "none"),
        ("2026/valve/00", "0.2500"),
    ]


def test_the_card_tells_what_made_the_system() -> None:
    card = model_card(CONFIG, RECIPE, METRICS, THRESHOLDS)
    facts = ("BEATS", "4 layers of size 192", "BEATs_iter3.pt", "fine-tuned on normals")
    facts += ("`complex_least_squares`", "`mean`", "`arcface`", "`knn`", "12 proxy classes")
    facts += ("the 0.95 quantile of its calibration scores (rule: gamma)",)
    facts += ("year 2026", "seed 7", "345 clips are references", "38 other normal clips")
    text = " ".join(card.split())
    assert [fact for fact in facts if fact.lower() not in text.lower()] == []
    assert "$" not in card  # every blank of the template is filled


def test_the_card_of_a_frozen_encoder_from_scratch_says_so() -> None:
    recipe = RECIPE | {"encoder_checkpoint": None}
    card = model_card(CONFIG, recipe, METRICS | {"frozen_encoder": True}, THRESHOLDS)
    assert "none: frozen encoder" in card
    assert "random initialisation" in card
    assert "fine-tuned" not in card


def test_the_card_explains_what_the_guard_decided() -> None:
    known = {"taken_db": 3.0, "rest_taken_db": 2.516}
    guard = {
        "2026/valve/00": known | {"strength": 1.0, "lines_taken_db": None},
        "2026/fan/00": known | {"strength": 0.0, "lines_taken_db": 12.34, "distance_change": 0.083},
    }
    card = model_card(CONFIG, RECIPE, METRICS | {"guard": guard}, THRESHOLDS)
    assert "A guard, fitted on the references alone" in card
    assert (
        "| 2026/fan/00 | 0 | 3.0 dB | 12.3 dB | 2.5 dB | +8 % |\n"
        "| 2026/valve/00 | 1 | 3.0 dB | none | 2.5 dB | unknown |\n"
    ) in card
    without = model_card(CONFIG, RECIPE, METRICS, THRESHOLDS)
    assert "No guard: `complex_least_squares` is applied to the clips of every machine." in without


def test_the_cards_front_matter_is_what_the_hub_reads() -> None:
    values = front_matter(model_card(CONFIG, RECIPE, METRICS, THRESHOLDS))
    assert values["library_name"] == "transformers"
    assert values["pipeline_tag"] == "audio-classification"
    assert "anomalous-sound-detection" in values["tags"]


def test_a_resolved_recipe_names_no_place_of_this_machine_and_makes_the_same_run_again(
    tmp_path: Path,
) -> None:
    recipes = Path(__file__).parents[2] / "recipes"
    here = ["--data_dir", str(tmp_path / "data"), "--output_dir", str(tmp_path / "out")]
    words = ["--recipe", str(recipes / "quickstart.yaml"), *here, "--layers", "1", "2"]
    words += ["--encoder_config", "none", "--encoder_checkpoint", str(tmp_path / "BEATs.pt")]
    args = parse_arguments(TrainArguments, [*words, "--learning_rate", "3e-4"])
    resolved = resolved_recipe(args)
    write(tmp_path / "run", recipe=resolved)
    text = (tmp_path / "run" / "recipe.yaml").read_text()
    assert str(tmp_path) not in text
    assert resolved["encoder_checkpoint"] == "BEATs.pt"
    assert read_recipe(TrainArguments, tmp_path / "run" / "recipe.yaml") == resolved | {
        "encoder_checkpoint": Path("BEATs.pt")
    }
    again = parse_arguments(
        TrainArguments, ["--recipe", str(tmp_path / "run" / "recipe.yaml"), *here]
    )
    assert resolved_recipe(again) == resolved
