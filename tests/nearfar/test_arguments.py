"""Defaults, recipe, command line: what wins, what is read, and what is refused."""

import errno
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml

import train
from modeling import AsdConfig
from nearfar.arguments import check_names, coerce, parse_arguments, script
from nearfar.training import TrainingInterruptedError

RECIPES = Path(__file__).parents[2] / "recipes"


@dataclass(kw_only=True)
class Arguments:
    """One field of every kind that scripts use."""

    recipe: Path | None = None
    data_dir: Path
    seed: int = 0
    learning_rate: float = 1e-4
    max_steps: int | None = None
    head: str = "arcface"
    note: str | None = None
    resample: bool = False
    progress: bool = True
    precision: Literal["no", "bf16"] = "no"
    layers: list[int] | None = None
    channels: list[str] = field(default_factory=lambda: ["near"])
    head_options: dict | str | None = None
    checkpoint: Path | None = None


def parse(*words: str, recipe: Any = None, folder: Path | None = None) -> Arguments:
    """Parse a command line, after writing its recipe, if any, into `folder`."""
    if recipe is not None:
        assert folder is not None
        path = folder / "recipe.yaml"
        path.write_text(recipe if isinstance(recipe, str) else yaml.safe_dump(recipe))
        words = ("--recipe", str(path), *words)
    if "--data_dir" not in words:
        words = ("--data_dir", "data", *words)
    return parse_arguments(Arguments, words)


def test_a_recipe_overrides_defaults_and_the_command_line_overrides_both(tmp_path: Path) -> None:
    recipe = {"seed": 1, "learning_rate": 0.5, "channels": ["far"], "head_options": {"margin": 0.2}}
    args = parse("--seed", "2", recipe=recipe, folder=tmp_path)
    assert (args.seed, args.learning_rate, args.max_steps) == (2, 0.5, None)
    assert (args.channels, args.head_options) == (["far"], {"margin": 0.2})
    args = parse(
        *("--channels", "near", "far", "--head_options", '{"scale": 1}'),
        recipe=recipe,
        folder=tmp_path,
    )
    assert (args.seed, args.channels, args.head_options) == (1, ["near", "far"], {"scale": 1})


def test_nothing_given_leaves_the_defaults() -> None:
    assert parse() == Arguments(data_dir=Path("data"))


def test_a_recipe_can_give_a_required_value(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("data_dir: somewhere")
    args = parse_arguments(Arguments, ["--recipe", str(path)])
    assert (args.data_dir, args.recipe) == (Path("somewhere"), path)


@pytest.mark.parametrize("word", ["3e-4", "0.0003", ".3e-3"])
def test_a_float_is_read_as_it_is_spelt_in_a_recipe_and_on_the_command_line(
    tmp_path: Path, word: str
) -> None:
    recipe = f"learning_rate: {word}"
    assert parse(recipe=recipe, folder=tmp_path).learning_rate == 3e-4
    assert parse("--learning_rate", word).learning_rate == 3e-4


@pytest.mark.parametrize(
    ("name", "word", "value"),
    [
        ("learning_rate", "1", 1.0),
        ("seed", "1e3", 1000),
        ("max_steps", "7", 7),
        ("max_steps", "none", None),
        ("layers", "none", None),
        ("layers", "3", [3]),
        ("note", "None", None),
        ("note", "text", "text"),
        ("checkpoint", "null", None),
        ("checkpoint", "a/b.pt", Path("a/b.pt")),
        ("head_options", "none", None),
        (
            "head_options",
            '{"margin": 0.5, "nested": {"a": [1]}}',
            {"margin": 0.5, "nested": {"a": [1]}},
        ),
        ("resample", "true", True),
        ("resample", "False", False),
        ("precision", "bf16", "bf16"),
        ("head", "none", "none"),  # this field knows no None
    ],
)
def test_a_word_of_the_command_line_becomes_what_the_field_declares(
    name: str, word: str, value: object
) -> None:
    for argv in ([f"--{name}", word], [f"--{name}={word}"], [f"--{name.replace('_', '-')}", word]):
        read = getattr(parse(*argv), name)
        assert read == value
        assert type(read) is type(value)


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("learning_rate", 1, 1.0),
        ("seed", 2.0, 2),
        ("layers", [1, "2"], [1, 2]),
        ("layers", None, None),
        ("head_options", {"scale": 30}, {"scale": 30}),
        ("checkpoint", None, None),
        ("resample", True, True),
        ("progress", False, False),
        ("data_dir", "a", Path("a")),
    ],
)
def test_a_value_of_a_recipe_becomes_what_the_field_declares(
    tmp_path: Path, name: str, given: object, value: object
) -> None:
    words = () if name != "data_dir" else ("--seed", "0")
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump({"data_dir": "data", name: given}))
    read = getattr(parse_arguments(Arguments, ["--recipe", str(path), *words]), name)
    assert read == value
    assert type(read) is type(value)


def test_a_flag_without_a_word_is_true_and_the_command_line_can_take_back_a_recipe(
    tmp_path: Path,
) -> None:
    assert parse("--resample").resample is True
    on, off = {"resample": True, "progress": True}, {"resample": False, "progress": False}
    assert parse("--resample", "false", recipe=on, folder=tmp_path).resample is False
    assert parse("--no_progress", recipe=on, folder=tmp_path).progress is False
    args = parse("--resample", "--progress", recipe=off, folder=tmp_path)
    assert (args.resample, args.progress) == (True, True)


WRONG = [
    ("seed", "1.5", "seed='1.5' is not int"),
    ("seed", "one", "seed='one' is not int"),
    ("seed", "inf", "seed='inf' is not int"),
    ("seed", "nan", "seed='nan' is not int"),
    ("seed", "none", "seed='none' is not int"),
    ("max_steps", "many", "max_steps='many' is not int"),
    ("learning_rate", "fast", "learning_rate='fast' is not float"),
    ("resample", "maybe", "resample='maybe' is not bool"),
    ("precision", "fp8", "precision='fp8' is not one of 'no', 'bf16'"),
    ("layers", "last", "layers='last' is not int"),
    ("head_options", "{margin: 1}", "head_options='{margin: 1}' is not JSON"),
    ("head_options", "[1]", "head_options='.1.' is not dict"),
]


@pytest.mark.parametrize(("name", "word", "message"), WRONG)
def test_a_word_of_the_wrong_type_is_refused(name: str, word: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(f"--{name}", word)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("seed", 1.5, "seed=1.5 is not int"),
        ("seed", True, "seed=True is not int"),
        ("seed", None, "seed=None is not int"),
        ("seed", [1], r"seed=\[1\] is not int"),
        ("learning_rate", False, "learning_rate=False is not float"),
        ("resample", 1, "resample=1 is not bool"),
        ("precision", False, "precision=False is not one of 'no', 'bf16'"),  # YAML's `no`
        ("channels", "near", "channels='near' is not list"),
        ("channels", [1], "channels=1 is not str"),
        ("layers", ["a"], "layers='a' is not int"),
        ("head", 3, "head=3 is not str"),
        ("head", None, "head=None is not str"),
        ("head_options", 5, "head_options=5 is not dict"),
        ("checkpoint", 5, "checkpoint=5 is not Path"),
        ("data_dir", ["a"], r"data_dir=\['a'\] is not Path"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(
    tmp_path: Path, name: str, value: object, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        parse(recipe={name: value}, folder=tmp_path)


def test_an_unknown_key_of_a_recipe_is_answered_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown key 'learning_rat'\. Did you mean 'learning_r"):
        parse(recipe={"learning_rat": 1}, folder=tmp_path)
    with pytest.raises(ValueError, match=r"recipe\.yaml has an unknown key 'zzz'\. Valid are: ch"):
        parse(recipe={"zzz": 1}, folder=tmp_path)
    with pytest.raises(ValueError, match=r"unknown key 5\. Valid are:"):
        parse(recipe="5: 1", folder=tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learning_rat", "1"], "--learning_rat is not a flag .* Did you mean 'learning_rate'"),
        (["--learning-rat=1"], "--learning-rat=1 is not a flag .* Did you mean 'learning_rate'"),
        (["--seeds", "1"], "Did you mean 'seed'"),
        (["--see", "1"], "--see is not a flag"),  # nor is an abbreviation
        (["--zzz"], "--zzz is not a flag of this script. Valid are: channels, "),
        (["data"], "data is not a flag of this script"),
    ],
)
def test_an_unknown_flag_is_answered_with_the_nearest_name(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(*words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "arguments are required: --data_dir"),
        (["--data_dir"], "--data_dir/--data-dir: expected one argument"),
        (["--data_dir", "d", "--channels"], "--channels: expected at least one argument"),
        (["--recipe"], "--recipe: expected one argument"),
    ],
)
def test_what_is_missing_on_the_command_line_is_named(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_arguments(Arguments, words)


def test_a_missing_recipe_is_answered_with_those_beside_it(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").touch()
    (tmp_path / "a.yaml").touch()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"no recipe .*c\.yaml\. Beside it") as caught:
        parse("--recipe", str(tmp_path / "c.yaml"))
    assert str(caught.value).endswith(f"{tmp_path / 'a.yaml'}, {tmp_path / 'b.yaml'}.")
    with pytest.raises(FileNotFoundError, match=r"Beside it: -\."):
        parse("--recipe", str(tmp_path / "nowhere" / "c.yaml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be a mapping of names to values, got None"),
        ("- seed", r"must be a mapping of names to values, got \['seed'\]"),
        ("seed", "must be a mapping of names to values, got 'seed'"),
        ("seed: [1", r"recipe\.yaml is not valid YAML: .*line 1"),
        ("seed: !!python/object:os.system x", r"recipe\.yaml is not valid YAML"),
    ],
)
def test_a_recipe_that_is_no_mapping_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(recipe=text, folder=tmp_path)


def test_help_names_every_field_its_choices_and_defaults(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse_arguments(Arguments, ["--help"])
    shown = capsys.readouterr().out
    assert stopped.value.code == 0
    assert "--head_options" in shown
    assert "{no,bf16}" in shown


def test_no_file_beside_the_script_adds_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train.args").write_text("--seed 5")
    monkeypatch.setattr("sys.argv", [str(tmp_path / "train.py"), "--data_dir", "d"])
    assert parse_arguments(Arguments).seed == 0


def test_parsing_twice_gives_fresh_lists() -> None:
    parse().channels.append("far")
    assert parse().channels == ["near"]


def test_the_first_type_of_a_union_that_fits_is_taken() -> None:
    assert coerce("x", "5", int | float | None) == 5
    assert coerce("x", "5.5", int | float | None) == 5.5
    with pytest.raises(ValueError, match="x='a' is not float"):
        coerce("x", "a", int | float)


def test_every_recipe_of_the_repository_is_one_of_train() -> None:
    paths = sorted(RECIPES.glob("*.yaml"))
    assert paths
    for path in paths:
        argv = ["--recipe", str(path), "--data_dir", "d", "--output_dir", "o"]
        args = parse_arguments(train.TrainArguments, argv)
        recipe = yaml.safe_load(path.read_text())
        for name, value in recipe.items():
            expected = float(value) if isinstance(getattr(args, name), float) else value
            assert getattr(args, name) == expected, f"{path.name}: {name}"


def test_every_choice_of_a_configuration_is_an_argument_of_train() -> None:
    args = parse_arguments(
        train.TrainArguments,
        [
            *("--data_dir", "d", "--output_dir", "o", "--encoder_checkpoint", "none"),
            *("--front_end", "complex_least_squares", "--layers", "1", "2"),
            *("--head_options", '{"margin": 1}', "--num_classes", "none"),
        ],
    )
    shared = {"front_end", "layers", "head", "head_options", "detector", "pooling", "channels"}
    config = AsdConfig(**{name: getattr(args, name) for name in shared})
    assert (config.front_end, config.layers) == ("complex_least_squares", [1, 2])
    assert (args.encoder_checkpoint, args.num_classes) == (None, None)


def run(main: Callable[[], int | None]) -> int:
    """Return the exit code of `script(main)`."""
    with pytest.raises(SystemExit) as stopped:
        script(main)
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def failing(error: BaseException) -> Callable[[], None]:
    def main() -> None:
        raise error

    return main


def test_a_script_that_succeeds_ends_with_its_code_and_says_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(lambda: None) == 0
    assert run(lambda: 0) == 0
    assert run(lambda: 3) == 3
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("margin is an angle."), "error: margin is an angle."),
        (KeyError("'pump' is not a machine here."), "error: 'pump' is not a machine here."),
        (FileNotFoundError("There is no recipe x."), "error: There is no recipe x."),
        (FloatingPointError("The loss became nan."), "error: The loss became nan."),
        (
            OSError(errno.ENOSPC, "No space left on device", "a.json"),
            f"error: [Errno {errno.ENOSPC}] No space left on device: 'a.json'",
        ),
    ],
)
def test_an_error_that_a_user_can_cause_is_one_line(
    error: Exception,
    line: str,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.DEBUG, logger="nearfar.arguments"):
        assert run(failing(error)) == 1
    assert capsys.readouterr() == ("", line + "\n")
    assert caplog.records[0].exc_info is not None  # the traceback is in the log
    assert caplog.records[0].levelno == logging.DEBUG


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"layers": [99]}, "error: layers [99] do not exist: the encoder has layers 1 to 12.\n"),
        ({"head_options": {"margin": 28.6}}, "radians"),
        ({"front_end": "nera"}, "error: Field 'front_end' expected one of"),
    ],
)
def test_what_a_configuration_refuses_is_one_line_too(
    options: dict[str, Any], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(lambda: AsdConfig(**options) and None) == 1
    shown = capsys.readouterr().err
    assert line in shown
    assert shown.count("\n") == 1


def test_an_interruption_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(failing(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert run(failing(TrainingInterruptedError("Interrupted after update 3 of 9"))) == 130
    assert capsys.readouterr().err == "Interrupted after update 3 of 9\n"


def test_a_programming_error_is_not_dressed_up() -> None:
    with pytest.raises(ZeroDivisionError):
        script(failing(ZeroDivisionError()))


def test_names_of_nothing_there_is_are_refused_all_at_once() -> None:
    known = {"beats": 1, "eat": 2}
    check_names("encoders", ["eat"], known)
    check_names("encoders", [], known)
    with pytest.raises(ValueError, match=r"--encoders \['ast', 'clap'\] are unknown; .*'beats'"):
        check_names("encoders", ["clap", "eat", "ast"], known)
