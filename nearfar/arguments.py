"""Arguments of a script: a dataclass's defaults, a recipe over them, the command line over both."""

import argparse
import dataclasses
import difflib
import json
import logging
import sys
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from huggingface_hub.errors import StrictDataclassError
from transformers import HfArgumentParser

from nearfar.files import read_yaml

logger = logging.getLogger(__name__)

Arguments = TypeVar("Arguments")


class _Parser(HfArgumentParser):
    """Raises ValueError where argparse would print its usage and end the process."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message[:1].upper()}{message[1:]}. See --help.")


def parse_arguments(cls: type[Arguments], argv: Sequence[str] | None = None) -> Arguments:
    """Read a script's arguments.

    `--recipe FILE.yaml` gives values for fields of `cls`; what stands on the command line wins. A
    field that holds a mapping is written as JSON on the command line.

    Args:
        cls: A dataclass; a field without a default must be given. "none" gives None where a field
            allows it.
        argv: The command line; None takes the process's own.

    Raises:
        ValueError: A key or flag that `cls` does not have (with the nearest valid name), or a value
            of the wrong type, or a required field is missing.
        FileNotFoundError: The recipe is not there.
    """
    command_line = list(sys.argv[1:] if argv is None else argv)
    first = _Parser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe", type=Path)
    recipe_path = first.parse_known_args(command_line)[0].recipe
    parser = _Parser(typing.cast(Any, cls), allow_abbrev=False)
    values = {} if recipe_path is None else read_recipe(cls, recipe_path)
    parser.set_defaults(**values)
    for action in parser._actions:
        action.required = action.required and action.dest not in values
        if action.dest in _names(cls):  # `coerce` reads the words: argparse knows no None
            if action.choices is not None:
                action.metavar = "{" + ",".join(map(str, action.choices)) + "}"
            action.type = action.choices = None
    *parsed, unknown = parser.parse_args_into_dataclasses(
        command_line, return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        flag = next((word for word in unknown if word.startswith("--")), unknown[0])
        name = flag.removeprefix("--").split("=")[0]
        raise ValueError(f"{flag} is not a flag of this script.{nearest_name(name, _names(cls))}")
    arguments = parsed[0]
    for field in dataclasses.fields(arguments):
        value = coerce(field.name, getattr(arguments, field.name), _hint(cls, field.name))
        setattr(arguments, field.name, value)
    return typing.cast(Arguments, arguments)


def given_arguments(cls: type, argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Return what stands on the command line itself: neither defaults nor a recipe's values.

    Args:
        cls: A dataclass, as `parse_arguments` takes it.
        argv: The command line, which `parse_arguments` has accepted; None: the process's own.
    """
    parser = _Parser(typing.cast(Any, cls), allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for action in parser._actions:
        action.default, action.required = argparse.SUPPRESS, False
        if action.dest in _names(cls):
            action.type = action.choices = None
    given = vars(parser.parse_args(list(sys.argv[1:] if argv is None else argv)))
    return {name: coerce(name, value, _hint(cls, name)) for name, value in given.items()}


def check_names(option: str, chosen: Sequence[str], known: Collection[str]) -> None:
    """Raise ValueError where an option names what there is not."""
    if unknown := sorted(set(chosen) - set(known)):
        raise ValueError(f"--{option} {unknown} are unknown; there are {list(known)}.")


def changed_names(arguments: Any) -> list[str]:  # noqa: ANN401 - any dataclass
    """Return the names of the fields whose value is not their default, nor required."""
    changed = []
    for field in dataclasses.fields(arguments):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if default is not dataclasses.MISSING and getattr(arguments, field.name) != default:
            changed.append(field.name)
    return changed


def read_recipe(cls: type, path: Path) -> dict[str, Any]:
    """Read a recipe's values, checked against the fields of the dataclass `cls`."""
    if not path.is_file():
        known = sorted(str(p) for p in path.parent.glob("*.yaml"))
        raise FileNotFoundError(f"There is no recipe {path}. Beside it: {', '.join(known) or '-'}.")
    values = read_yaml(path, f"Recipe {path}")
    if not isinstance(values, dict):
        raise ValueError(f"Recipe {path} must be a mapping of names to values, got {values!r}.")
    return checked_values(cls, values, f"Recipe {path}")


def checked_values(cls: type, values: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """Return values as the fields of the dataclass `cls` declare them.

    Args:
        cls: A dataclass.
        values: Name -> value.
        where: They come from, for messages.

    Raises:
        ValueError: A name is unknown (the nearest one is given), or a value of the wrong type.
    """
    names = _names(cls)
    for key in values:
        if key not in names:
            raise ValueError(f"{where} has an unknown key {key!r}.{nearest_name(str(key), names)}")
    return {key: coerce(key, value, _hint(cls, key)) for key, value in values.items()}


def coerce(name: str, value: Any, hint: Any) -> Any:  # noqa: ANN401 - any field of any dataclass
    """Return `value` as the type that field `name` declares.

    An int becomes a float where a float is due, a string what it spells (the command line has
    nothing else, and YAML reads `3e-4` as a string), a JSON string a mapping. A Literal is checked;
    None, or "none", passes where the hint allows it.

    Raises:
        ValueError: `value` is not of that type.
    """
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    problem = ValueError(f"{name}={value!r} is not {_spelt(hint)}.")
    if origin in (typing.Union, types.UnionType):
        word = value[0] if isinstance(value, list) and len(value) == 1 else value  # --layers none
        if type(None) in parts and (
            word is None or (isinstance(word, str) and word.lower() in ("none", "null"))
        ):
            return None
        # HfArgumentParser takes a mapping only as `dict | str`: there the string is JSON.
        possible = [part for part in parts if part is not type(None)]
        if dict in possible:
            possible.remove(str)
        for part in possible[:-1]:
            try:
                return coerce(name, value, part)
            except ValueError:
                continue
        return coerce(name, value, possible[-1])
    if origin is typing.Literal:
        if value not in parts:
            listed = ", ".join(repr(part) for part in parts)
            raise ValueError(f"{name}={value!r} is not one of {listed}.")
        return value
    if origin is list:
        if not isinstance(value, list | tuple):
            raise problem
        return [coerce(name, item, parts[0]) for item in value]
    if hint is dict or origin is dict:
        try:
            mapping = json.loads(value) if isinstance(value, str) else value
        except json.JSONDecodeError as error:
            raise ValueError(f"{name}={value!r} is not JSON: {error}.") from error
        if not isinstance(mapping, dict):
            raise problem
        return mapping
    if hint is bool:
        if isinstance(value, str):
            value = {"true": True, "false": False}.get(value.lower())
        if not isinstance(value, bool):
            raise problem
        return value
    if hint in (int, float):
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise problem
        try:
            number = float(value)
        except (ValueError, OverflowError):
            raise problem from None
        if hint is int and not number.is_integer():  # nor are nan and inf
            raise problem
        return hint(number)
    if hint is Path:
        if not isinstance(value, str | Path):
            raise problem
        return Path(value)
    if not isinstance(value, hint):
        raise problem
    return value


def nearest_name(name: str, names: Collection[str]) -> str:
    """Return the end of a message: the valid name nearest to an unknown one, or all of them."""
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else f" Valid are: {', '.join(sorted(names))}."


def script(main: Callable[[], int | None]) -> NoReturn:
    """Run a script's `main`; an error a user can cause ends it with its message and exit code 1.

    The traceback goes to the log at level DEBUG.
    """
    try:
        code = main() or 0
    except (ValueError, KeyError, OSError, FloatingPointError) as error:
        logger.debug("traceback", exc_info=True)
        text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
        sys.stderr.write(f"error: {text}\n")
        code = 1
    except StrictDataclassError as error:  # a model's configuration refused a value
        logger.debug("traceback", exc_info=True)
        sys.stderr.write(f"error: {error.__cause__ or error}\n")
        code = 1
    except KeyboardInterrupt as interruption:
        sys.stderr.write(f"{str(interruption) or 'interrupted'}\n")
        code = 130
    sys.exit(code)


def _names(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def _hint(cls: type, name: str) -> Any:  # noqa: ANN401
    return typing.get_type_hints(cls)[name]


def _spelt(hint: Any) -> str:  # noqa: ANN401
    return getattr(hint, "__name__", None) or str(hint).replace("typing.", "")
