"""What was published is data; ours stands beside it, is resumed, and says when it means nothing."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import reproduce
import train
from nearfar.arguments import parse_arguments
from nearfar.files import read_json, write_json
from nearfar.in_process import as_words
from nearfar.metrics import official_score
from nearfar.published import PublishedSystem, checkpoint_names, read_published
from nearfar.reproduction import format_ladder, format_system

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = read_published()
RUNGS = [system for system in PUBLISHED.values() if system.is_rung]
HASTE = '{"max_steps": 2, "train_batch_size": 4, "gradient_accumulation_steps": 2,'
HASTE += ' "train_subsets": ["dev"], "held_out_share": 0.2, "warmup_steps": 1}'


@pytest.fixture
def run(
    tmp_path: Path,
    factory_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., str]:
    """Call reproduce.py, and return what it prints."""

    def call(*words: object) -> str:
        words = ("--data_dir", factory_dir, "--output_dir", tmp_path / "out", *words)
        monkeypatch.setattr("sys.argv", ["reproduce.py", *map(str, words)])
        reproduce.main()
        return capsys.readouterr().out

    return call


def test_the_figures_per_machine_make_the_official_scores_that_were_printed() -> None:
    printed = [s for s in PUBLISHED.values() if s.machines and s.definition == "official"]
    assert len(printed) == 10
    for system in printed:
        assert len(system.machines) == 7
        assert system.official_score is not None
        score = official_score(list(system.machines.values()))
        assert score == pytest.approx(system.official_score, abs=7e-5), system.name
    assert PUBLISHED["unis_3"].definition == "within_domain"
    assert PUBLISHED["unis_3"].machines["2026/valveEmu/00"] == pytest.approx(
        (0.9944, 0.705, 0.7889)
    )


def test_each_rung_of_the_ladder_changes_one_thing_that_train_py_knows() -> None:
    scores = [rung.official_score for rung in RUNGS]
    assert scores == pytest.approx([0.5716, 0.5794, 0.6028, 0.6132, 0.6202, 0.6748])
    made: list[dict[str, Any]] = []
    for rung in RUNGS:
        words = ["--recipe", str(ROOT / "recipes" / f"{rung.recipe}.yaml"), "--data_dir", "data"]
        words += ["--output_dir", "run", *as_words(rung.values)]
        made.append(vars(parse_arguments(train.TrainArguments, words)))
        assert made[-1]["no_training"]
        assert (made[-1]["guard"], made[-1]["held_out_share"]) == ("none", 0.0)
    ignored = {"recipe"}
    changes = [
        {key for key in now if now[key] != before[key]} - ignored
        for before, now in itertools.pairwise(made)
    ]
    assert changes == [
        {"pooling_options", "join_bands"},
        {"detector_options", "join_bands"},
        {"pooling", "pooling_options"},
        {"pooling_options"},
        {"pooling_options", "front_end"},  # gamma 4, as before 8 was tried
    ]


def test_systems_are_trained_scored_and_printed_once(
    run: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--systems", "ladder_1", "xju_2", "--random_size", "small", "--num_resamples", 20]
    words += ["--seeds", 1, "--values", HASTE]
    printed = run(*words)
    for told in ("RANDOM WEIGHTS (small size): COMPARE NOTHING", "NOT THE RECIPE'S: {'max_steps'"):
        assert printed.count(told) == 2  # above each table
    assert "None of the published machines is in this data: COMPARE NOTHING." in printed
    assert "62.85" in printed
    folders = sorted(p.relative_to(tmp_path / "out") for p in tmp_path.glob("out/*/scores/*"))
    assert [str(f) for f in folders] == ["seed_001/scores/ladder_1", "seed_001/scores/xju_2"]
    monkeypatch.setattr(reproduce, "run_main", None)  # cannot be called
    assert printed.endswith(run(*words))
    with pytest.raises(ValueError, match=r"seed 1: xju_2 was made with .*'max_steps': 2"):
        run(*words[:-1], HASTE.replace("2", "3", 1))


def test_an_interrupted_training_goes_on_and_a_failure_leaves_the_others(
    run: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []

    def run_main(_: Any, words: list[object]) -> None:
        calls.append([str(word) for word in words])
        raise FloatingPointError("The loss became nan.")

    monkeypatch.setattr(reproduce, "run_main", run_main)
    (tmp_path / "out/seed_000/runs/xju_1/trainer_state/step_000200").mkdir(parents=True)
    message = r"ladder_1, seed 0: The loss .* xju_1, seed 0: .* xju_1, seed 1: The loss"
    with pytest.raises(ValueError, match=message):
        run("--systems", "ladder_1", "xju_1", "--seeds", 0, 1)
    resumed = [words[-2:] == ["--resume_from_checkpoint", "latest"] for words in calls]
    assert resumed == [False, True, False]  # what is frozen needs one seed


def test_members_of_a_fusion_get_the_weights_of_their_encoders(
    run: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    write_json(recipes / "unis_1.yaml", {"encoder_type": "nearfar_eat"})  # JSON is YAML
    write_json(recipes / "unis_2.yaml", {"encoder_type": "nearfar_beats"})
    members = [{"recipe": "unis_1"}, {"recipe": "unis_2"}]
    write_json(recipes / "unis_3.yaml", {"kind": "fusion", "members": members})
    monkeypatch.setattr(reproduce, "RECIPES", recipes)
    calls: list[list[str]] = []

    def run_main(module: Any, words: list[object]) -> None:
        calls.append([str(word) for word in words])

    monkeypatch.setattr(reproduce, "run_main", run_main)
    weights = tmp_path / "weights"
    (weights / "eat").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"no weights of nearfar_beats .*BEATs_iter3\.pt"):
        run("--systems", "unis_3", "--checkpoints", weights)
    (weights / "BEATs_iter3.pt").touch()
    run("--systems", "unis_3", "xju_4", "--checkpoints", weights)  # xju_4 has no recipe here
    training, scoring = calls
    position = training.index("--encoder_checkpoints")
    assert training[position + 1 : position + 3] == [
        f"nearfar_eat={weights / 'eat'}",
        f"nearfar_beats={weights / 'BEATs_iter3.pt'}",
    ]
    assert training[-2:] == ["--members_dir", str(tmp_path / "out/seed_000/runs")]
    assert scoring[1] == str(tmp_path / "out/seed_000/runs/unis_3")
    noted = read_json(tmp_path / "out/seed_000/settings/unis_3.json")
    assert list(noted) == ["encoder_checkpoints"]


def test_every_encoder_of_a_recipe_has_names_to_look_for() -> None:
    recipes = [reproduce.read_recipe_file(path.stem) for path in (ROOT / "recipes").glob("*.yaml")]
    single = [recipe for recipe in recipes if recipe.get("kind") not in reproduce.FUSIONS]
    types = {reproduce.encoder_type(recipe) for recipe in single}
    assert len(types) >= 3
    assert {name for name in types if name} <= set(checkpoint_names())


def metrics_of(source: float, official: float) -> dict[str, Any]:
    values = {"auc_source": source, "auc_target": 0.5, "pauc": 0.55}
    intervals = {name: [value - 0.05, value + 0.05] for name, value in values.items()}
    machines = {"2026/fan/00": values | {"intervals": intervals}}
    interval = [official - 0.02, official + 0.02]
    return {"machines": machines, "official_score": official, "official_score_interval": interval}


def test_the_tables_are_a_worked_example() -> None:
    system = PublishedSystem(
        name="a",
        source="s",
        recipe="r",
        official_score=0.6,
        machines={"2026/fan/00": (0.64, 0.56, 0.55)},
    )
    lines = format_system(system, [metrics_of(0.6, 0.5)], "weights of x")
    assert "over test clips, one seed" in lines[1]
    expected = "2026/fan/00 60.00 (55.00 to 65.00) 64.00 50.00 (45.00 to 55.00) 56.00*"
    assert " ".join(lines[3].split()) == f"{expected} 55.00 (50.00 to 60.00) 55.00"
    assert lines[4].split() == ["official", "score", "50.00", "(48.00", "to", "52.00)", "60.00*"]
    assert len(lines) == 5
    # Two seeds: mean 0.58, standard error 0.02, 12.706 of them on each side.
    two = format_system(system, [metrics_of(0.6, 0.5), metrics_of(0.56, 0.5)], "weights of x")
    assert "over 2 seeds" in two[1]
    assert "58.00 (32.59 to 83.41)" in two[3]

    rungs = [
        PublishedSystem(name=n, source="s", recipe="r", title=n, official_score=o, is_rung=True)
        for n, o in (("one", 0.55), ("two", 0.575), ("three", 0.6))
    ]
    results = {"one": [metrics_of(0.6, 0.5)], "two": [metrics_of(0.6, 0.53)]}
    ladder = [line.split() for line in format_ladder(rungs, results, "weights of x")[2:]]
    assert ladder[0] == ["one", "50.00", "(48.00", "to", "52.00)", "55.00"]
    assert ladder[1] == ["two", "53.00", "(51.00", "to", "55.00)", "+3.00", "57.50", "+2.50"]
    assert ladder[2] == ["three", "-", "60.00", "+2.50"]


def test_an_unknown_system_is_refused(run: Callable[..., str]) -> None:
    with pytest.raises(ValueError, match=r"\['xju_9'\] are unknown; there are \['ladder_1'"):
        run("--systems", "xju_9")
