"""Every recipe runs, at tiny size, from its values to scores; `--smoke` is what runs them."""

import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml

import train
from assembly.smoke import at_tiny_size
from data_scripts.near_far import known, load_near_far
from modeling import AsdConfig
from nearfar.arguments import read_recipe
from nearfar.checkpoints import latest_checkpoint
from nearfar.evaluation import ScoreTable, read_metrics
from nearfar.files import read_json
from nearfar.hub import read_run
from tests.scripts import run_script
from tests.tiny import TINY_ENCODER

ROOT = Path(__file__).resolve().parents[1]
RECIPES = {path.stem: path for path in sorted((ROOT / "recipes").glob("*.yaml"))}
# The default suite runs these two, the first by the fixture that all share; the others are slow.
CHEAPEST = ("beyond_frozen", "quickstart")

# What is scored at the smoke run's size: views (layers x channels), bands, and values of each.
SCORED = {
    "beats_arcface": (1, 1, 32),
    "beyond_cancel": (1, 8, 32),
    "beyond_frozen": (1, 8, 32),
    "beyond_lora": (1, 8, 32),
    "beyond_na": (1, 8, 32),
    "quickstart": (1, 1, 128),
    "unis_1": (3, 1, 768),
    "unis_2": (1, 1, 768),
    "unis_feature": (1, 1, 3 * 768 + 768),
    "xju_1": (1, 1, 32),
    "xju_2": (1, 1, 32),
    "xju_3": (1, 1, 32),
    "audiocc_1": (1, 1, 256),
    "audiocc_2": (1, 1, 256),
}
MEMBERS = {
    "unis_3": ["unis_1", "unis_2"],
    "unis_4": ["unis_1", "unis_2"],
    "unis_feature": ["unis_1", "unis_2"],
    "xju_4": ["xju_1", "xju_2"],
    "audiocc_3": ["arcface_10s", "subcenter_arcface_10s", "adacos_full"],
    "audiocc_4": [
        *("arcface_10s", "subcenter_arcface_10s", "adacos_full", "arcface_6s"),
        *("subcenter_arcface_6s", "arcface_10s_last_4", "adacos_10s"),
    ],
}
# What a smoke run makes smaller, beside the encoder.
SMALLER = {
    *("encoder_config", "max_steps", "train_batch_size", "gradient_accumulation_steps"),
    *("warmup_steps", "held_out_share", "num_train_epochs", "num_trials", "search_step"),
}


@pytest.fixture(scope="module")
def members_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the members of all fusions are trained, each once."""
    return tmp_path_factory.mktemp("members")


class Smoke(NamedTuple):
    """A smoke run that was given no data, and what it printed."""

    run: Path
    printed: str

    @property
    def data(self) -> Path:
        return self.run / "trainer_state" / "smoke_data"


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Smoke:
    """The cheapest smoke run; the others hear its simulated clips, made once for all of them."""
    run = tmp_path_factory.mktemp("smoke")
    with pytest.MonkeyPatch.context() as monkeypatch, redirect_stdout(StringIO()) as printed:
        words = ["--recipe", RECIPES["beyond_frozen"], "--output_dir", run, "--smoke"]
        run_script(train, words, monkeypatch)
    return Smoke(run, printed.getvalue())


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in CHEAPEST else pytest.mark.slow)
        for name in RECIPES
        if name != CHEAPEST[0]
    ],
)
def test_a_recipe_runs_from_its_values_to_scores(
    name: str, smoke: Smoke, members_dir: Path, tmp_path: Path, monkeypatch
) -> None:
    run = tmp_path / "run"
    words = ["--recipe", RECIPES[name], "--data_dir", smoke.data, "--output_dir", run, "--smoke"]
    words += ["--members_dir", members_dir] if name in MEMBERS else []
    run_script(train, words, monkeypatch)
    check(run, smoke.data, name)


def check(run: Path, data: Path, name: str) -> None:
    """Check a scored run folder against the recipe that made it."""
    values = read_recipe(train.TrainArguments, RECIPES[name])
    kind = values.get("kind", "model")
    assert read_run(run)["kind"] == kind
    resolved = yaml.safe_load((run / "recipe.yaml").read_text())
    assert resolved["smoke"] is True
    assert {key: resolved[key] for key in values.keys() - SMALLER} == {
        key: value for key, value in values.items() if key not in SMALLER
    }
    metrics = read_json(run / "metrics.json")
    assert (metrics["recipe"], metrics["smoke"]) == (name, True)
    if name in SCORED:
        assert tuple(metrics["embedding_shape"]) == SCORED[name]
    if kind == "model":
        check_model(run, data, values, metrics)
    if name in MEMBERS:
        numbered = [f"members/{i}_{member}" for i, member in enumerate(MEMBERS[name], start=1)]
        assert read_run(run)["members"] == numbered
    scores = run / "scores"
    table = ScoreTable.read_csv(scores / "scores.csv")
    assert len(table) == 24
    assert len(set(np.round(table.anomaly_scores, 12))) > 12
    scored = read_metrics(scores)
    assert scored["smoke"] is True
    assert 0 < scored["official_score"] < 1


def check_model(run: Path, data: Path, values: dict[str, Any], metrics: dict[str, Any]) -> None:
    config = AsdConfig.from_pretrained(run)
    frozen = values.get("no_training", False)
    for key in ("front_end", "pooling", "layers", "head", "detector", "scored_pooling"):
        if key in values and not frozen:
            assert getattr(config, key) == values[key]
    assert (metrics["guard"] is None) is (values.get("guard", "none") == "none")
    subsets = values.get("train_subsets", ["dev"])
    rows = known(load_near_far(data, subsets=subsets)["train"])
    # Of the slider, without attributes, there are too few clips for more than a cluster a domain.
    classes = {(row["machine"], row["attributes"], row["domain"]) for row in rows}
    assert metrics["num_classes"] == config.num_labels == len(classes)
    if centers := values.get("subcenters_without_attributes"):
        counts = [centers if "slider" in name else 1 for name in config.id2label.values()]
        assert config.head_options["num_subcenters"] == counts
        assert counts.count(centers) == 2
    state = latest_checkpoint(run / "trainer_state")
    assert (None if state is None else state.name) == (None if frozen else "step_000002")


def test_a_smoke_run_says_what_it_is_and_needs_no_data(smoke: Smoke) -> None:
    assert "SMOKE RUN: these scores mean nothing." in smoke.printed
    assert read_metrics(smoke.run / "scores")["smoke"] is True
    check(smoke.run, smoke.data, "beyond_frozen")
    assert str(smoke.run) not in (smoke.run / "recipe.yaml").read_text()


def test_the_command_line_wins_over_the_tiny_size() -> None:
    args = train.TrainArguments(output_dir=Path("run"), max_steps=7, train_batch_size=16)
    tiny = at_tiny_size(args, given={"max_steps": 7})
    assert (tiny.max_steps, tiny.train_batch_size, tiny.smoke) == (7, 4, True)


def test_without_smoke_clips_must_be_given(tmp_path, monkeypatch) -> None:
    words = ["--recipe", RECIPES["quickstart"], "--output_dir", tmp_path / "run"]
    with pytest.raises(ValueError, match="are required: --data_dir"):
        run_script(train, words, monkeypatch)
    assert not (tmp_path / "run").exists()


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


@pytest.mark.parametrize("name", sorted(set(RECIPES) - {"quickstart"}))
def test_a_recipe_says_of_each_value_whether_a_report_states_it(name: str) -> None:
    for line in RECIPES[name].read_text(encoding="utf-8").splitlines():
        body, _, comment = line.partition(" #")
        if line.startswith("#") or not body.strip() or body.rstrip().endswith(":"):
            continue  # prose, or the name of what stands below
        assert comment.split()[0].rstrip(":;,") in ("report", "chosen"), line


def test_the_quickstarts_values_are_ours() -> None:
    assert "# All values are ours, chosen on" in RECIPES["quickstart"].read_text(encoding="utf-8")


def test_the_weights_that_reports_state_are_those_of_their_recipes() -> None:
    stated = {name: read_recipe(train.TrainArguments, RECIPES[name]) for name in MEMBERS}
    assert stated["unis_3"]["weights"] == [0.45, 0.55]
    assert stated["unis_4"]["weights"] == stated["xju_4"]["weights"] == [0.5, 0.5]
    for name in ("audiocc_3", "audiocc_4"):
        assert (stated[name]["search_weights"], stated[name]["search_method"]) == (True, "bayesian")
        assert "weights" not in stated[name]
    first, second = ([m["name"] for m in stated[n]["members"]] for n in ("audiocc_3", "audiocc_4"))
    assert second[:3] == first
    assert stated["audiocc_4"]["members"][:3] == stated["audiocc_3"]["members"]
