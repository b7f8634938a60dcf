"""The benchmark of objectives at toy size: compares, adds rows, resumes, refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoConfig

import score
import train
from benchmarks import lora, objectives
from benchmarks.objective_tables import Row, Table, read_tables
from modeling import BeatsModel
from nearfar.arguments import parse_arguments
from nearfar.files import read_json, read_yaml, write_json
from tests.tiny import TINY_ENCODER

TINY = ["--machines", "1", "--source_train", "6", "--target_train", "2", "--test_per_group", "2"]
TINY += ["--seconds", "1"]
SHARED = {"max_steps": 2, "train_batch_size": 4, "held_out_share": 0.2, "train_subsets": ["dev"]}
FAMILIES = {
    "frozen": {"no_training": True},
    "random": {"no_training": True, "encoder": "random"},
    "log-mel, strong": {"log_mel": {"num_bands": 8, "detector_options": {"num_neighbors": 2}}},
    "UNIS": {"recipe": "unis_2", "encoder_type": None, "layers": None},
}


def write_tables(path: Path, tables: dict[str, Any], **content: Any) -> Path:
    path.write_text(yaml.safe_dump({"tables": tables, **content}, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder's folder."""
    folder = tmp_path_factory.mktemp("encoder")
    config = {name: value for name, value in TINY_ENCODER.items() if name != "model_type"}
    BeatsModel(AutoConfig.for_model("nearfar_beats", **config)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def shipped() -> tuple[list[Table], dict[str, Row]]:
    """The tables and rows that the benchmark brings along."""
    return read_tables([objectives.TABLES])


@pytest.fixture
def run(
    tmp_path: Path,
    encoder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., str]:
    """Call the benchmark on tables in `tmp_path`, and return what it prints."""

    def call(tables: list[Path], *words: object) -> str:
        words = ("--tables", *tables, "--encoder_checkpoint", encoder, *TINY, *words)
        words = ("--output_dir", tmp_path / "runs", *words)
        monkeypatch.setattr("sys.argv", ["objectives.py", *map(str, words)])
        objectives.main()
        return capsys.readouterr().out

    return call


@pytest.mark.slow
def test_rows_are_compared_and_what_is_done_is_not_done_again(
    run: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = {"title": "Families", "against": "frozen", "rows": FAMILIES}
    first = write_tables(tmp_path / "tables.yaml", {"families": table}, shared=SHARED)
    done: list[str] = []
    monkeypatch.setattr(train, "main", counted(train.main, done, "train"))
    monkeypatch.setattr(score, "main", counted(score.main, done, "score"))
    run([first], "--seeds", 1)
    assert done == ["train", "score"] * 3  # those with an encoder
    results = {name: read_json(path_of(tmp_path, 1, name)) for name in FAMILIES}
    values = results["UNIS"]["setting"]["values"]
    assert (values["far_mixing"], values["max_steps"]) == (0.5, 2)  # the recipe's, and shared
    assert results["random"]["official_score"] != results["frozen"]["official_score"]
    assert not list(tmp_path.glob("runs/seed_*/*/"))  # neither recordings nor runs

    more = {"families": {"rows": {"UNIS, no mixing": {"like": "UNIS", "far_mixing": 0.0}}}}
    added = write_tables(tmp_path / "more.yaml", more)
    del done[:]
    assert "UNIS, no mixing" in run([first, added], "--seeds", 1)
    assert done == ["train", "score"]
    del done[:]
    with pytest.raises(ValueError, match=r"sizes .*'source_train': 6.* for .*'source_train': 7"):
        run([first], "--seeds", 1, "--source_train", 7)
    assert not done


def test_the_table_is_a_worked_example(run: Callable[..., str], tmp_path: Path) -> None:
    table = {"title": "T", "against": "a", "rows": {"a": {}, "b": {}, "c": {}, "d": {}}}
    path = write_tables(tmp_path / "tables.yaml", {"t": table})
    official = {"a": [0.50, 0.52, 0.54], "b": [0.53, 0.51, 0.56], "c": [0.6, 0.6, None]}
    for name, values in official.items():
        for seed, value in enumerate(values, start=1):
            if value is not None:
                place = path_of(tmp_path, seed, name)
                place.parent.mkdir(parents=True, exist_ok=True)
                machines = {"2026/fan/00": [0.7, 0.4, 0.5], "2026/pump/00": [0.5, 0.6, 0.6]}
                result = {"official_score": value, "machines": machines, "seconds": 12.0}
                write_json(place, result)
    lines = run([path], "--seeds", 1, 2, 3, "--print_only").splitlines()
    assert lines[2].split() == ["a", "52.00", "(2.00)", "60.00", "50.00", "55.00", "12"]
    # Differences 3, -1, 2: mean 4/3, standard error 1.2019, 4.3027 of them on each side.
    expected = ["b", "53.33", "(2.52)", "+1.33", "(-3.84", "to", "+6.50)", "2/3"]
    assert lines[3].split() == [*expected, "60.00", "50.00", "55.00", "12"]
    # Where a row is not done for a factory, the others count: 10 and 8.
    assert lines[4].split()[:8] == [
        "c",
        "60.00",
        "(0.00)",
        "+9.00",
        "(-3.71",
        "to",
        "+21.71)",
        "2/2",
    ]
    assert lines[5].split() == ["d", "-"]


def test_a_row_that_fails_leaves_the_others(run: Callable[..., str], tmp_path: Path) -> None:
    bad = {"like": "frozen", "front_end": "near", "guard": "fitted"}  # nothing to judge
    table = {"title": "T", "against": "frozen", "rows": {"bad": bad, "frozen": FAMILIES["frozen"]}}
    path = write_tables(tmp_path / "tables.yaml", {"t": table}, shared=SHARED)
    with pytest.raises(ValueError, match="no score: bad, factory 3: guard='fitted' judges"):
        run([path], "--seeds", 3)
    assert path_of(tmp_path, 3, "frozen").is_file()
    assert not path_of(tmp_path, 3, "bad").exists()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"a": {"far_mixng": 0.5}}, "Row 'a': --far_mixng is not a flag.*far_mixing"),
        ({"a": {"like": "b"}}, r"Row 'a': like='b' is none of \['a'\]"),
        ({"a": {"encoder": "large"}}, "Row 'a': encoder='large' is none of"),
        ({"b": {}}, "compares with 'a', which is no row"),
        (["a"], "is not a file of tables"),
    ],
)
def test_a_wrong_file_of_tables_stops_before_anything_is_done(
    rows: Any, message: str, run: Callable[..., str], tmp_path: Path
) -> None:
    table = {"title": "T", "against": "a", "rows": rows}
    path = write_tables(tmp_path / "tables.yaml", {"t": table}, shared=SHARED)
    with pytest.raises(ValueError, match=message):
        run([path])
    assert not (tmp_path / "runs").exists()


def test_the_encoders_are_made_once_and_the_noise_aware_one_only_for_a_row_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []
    taught: list[list[str]] = []

    def pretrain(names: list[str], folder: Path, **options: Any) -> None:
        calls.append(options)
        make(lora.encoder_folder(folder, names[0]))

    def make(encoder: Path) -> None:
        encoder.mkdir(parents=True)
        write_json(encoder / lora.ENCODER_FILE, {})

    def run_steps(steps: list[list[Any]], cache: Path) -> None:
        simulate, teach = ([str(word) for word in step] for step in steps)
        Path(option(simulate, "--output_dir")).mkdir(parents=True)
        taught.append(teach)
        make(Path(option(teach, "--output_dir")))
        assert "--components" in simulate
        assert option(simulate, "--output_dir") == option(teach, "--data_dir")

    monkeypatch.setattr(lora, "pretrain", pretrain)
    monkeypatch.setattr(objectives, "run_steps", run_steps)
    args = parse_arguments(objectives.ObjectivesArguments, ["--output_dir", str(tmp_path)])
    plain = objectives.made_encoders(args, {"pretrained", "random", ""})
    assert list(plain) == ["pretrained"]
    assert not taught
    both = objectives.made_encoders(args, {"pretrained", "noise_aware"})
    assert both == objectives.made_encoders(args, {"pretrained", "noise_aware"})
    assert both["pretrained"] == plain["pretrained"]
    assert len(calls) == len(taught) == 1
    assert option(taught[0], "--encoder_checkpoint") == str(plain["pretrained"])
    words = [str(word) for word in calls[0]["training"]]
    arguments = ["--data_dir", "data", "--output_dir", "run", "--recipe", str(lora.TRAIN[-1])]
    values = parse_arguments(train.TrainArguments, [*arguments, *words])
    assert (values.front_end, values.join_bands, values.max_steps) == ("near", False, 600)
    assert "challenge" in calls[0]["factory"]


def test_a_row_of_shared_networks_takes_those_that_are_trained(
    shipped: tuple[list[Table], dict[str, Row]], tmp_path: Path
) -> None:
    _, rows = shipped
    places: Any = {"data": tmp_path, "folder": tmp_path, "encoders": {}, "seed": 1}
    mse, mahala = rows["baseline MSE"], rows["baseline MAHALA"]
    assert mse.networks == mahala.networks != ""
    for row in (mse, mahala):
        (_, alone), _ = row.commands(**places)
        (_, shared), _ = row.commands(**places, networks=tmp_path / "networks")
        assert "--resume_from_checkpoint" not in alone
        assert option(list(map(str, shared)), "--resume_from_checkpoint").endswith("networks")
    trained = [
        {k: v for k, v in row.values.items() if k != "autoencoder_config"} for row in (mse, mahala)
    ]
    assert trained[0] == trained[1]  # else they would be other networks


def test_a_row_differs_from_its_recipe_only_where_the_table_says_so(
    shipped: tuple[list[Table], dict[str, Row]],
) -> None:
    content = read_yaml(objectives.TABLES, "tables")
    shared = content["shared"]
    _, rows = shipped
    of_recipes = [
        (name, values)
        for table in content["tables"].values()
        for name, values in table["rows"].items()
        if "recipe" in values
    ]
    assert len(of_recipes) >= 11
    for name, values in of_recipes:
        recipe = read_yaml(objectives.ROOT / "recipes" / f"{values['recipe']}.yaml", name)
        said = {*values, *table_values(content, values.get("like"))}
        said |= set() if recipe.get("kind") == "autoencoder" else set(shared)
        kept = set(recipe) - said - {"seed"}
        assert kept, name
        assert {key: rows[name].values[key] for key in kept} == {key: recipe[key] for key in kept}


def test_the_tables_have_what_the_issue_asks_for_at_equal_budgets(
    shipped: tuple[list[Table], dict[str, Row]],
) -> None:
    tables, rows = shipped
    assert [table.against for table in tables] == ["frozen encoder", "ArcFace"]
    trained = [
        row.values for row in rows.values() if row.encoder and not row.values.get("no_training")
    ]
    budgets = {
        tuple(values[key] for key in ("max_steps", "train_batch_size", "crop_seconds"))
        for values in trained
    }
    assert len(trained) >= 16
    assert len(budgets) == 1
    assert {values["gradient_accumulation_steps"] for values in trained} == {1}
    base = rows["ArcFace"].values
    for name in tables[1].names[1:]:  # one thing changed: an option, with those that belong to it
        changed = {k for k, v in rows[name].values.items() if base.get(k) != v}
        changed |= {"encoder"} if rows[name].encoder != rows["ArcFace"].encoder else set()
        assert 1 <= len(changed) <= 3, name
    files = {path_of(Path(), 0, name) for name in rows}
    assert len(files) == len(rows)


def option(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


def table_values(content: dict[str, Any], name: str | None) -> dict[str, Any]:
    return next(
        (table["rows"][name] for table in content["tables"].values() if name in table["rows"]), {}
    )


def counted(main: Callable[[], None], done: list[str], name: str) -> Callable[[], None]:
    def call() -> None:
        main()
        done.append(name)

    return call


def path_of(folder: Path, seed: int, name: str) -> Path:
    words = ["--output_dir", str(folder / "runs")]
    return objectives.result_file(
        parse_arguments(objectives.ObjectivesArguments, words), seed, name
    )
