"""Files and folders that are written whole or not at all."""

import json
import math
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml


@contextmanager
def whole_folder(folder: Path, *, last: str | None = None) -> Iterator[Path]:
    """Give a temporary folder whose files move into `folder` when the block ends without an error.

    After an error `folder` holds what it held before, and the temporary one is gone.

    Args:
        folder: The destination; made if missing, its other files are left alone.
        last: Name of the file that marks the folder complete: removed first, moved last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial_", dir=folder))
    try:
        yield partial
        _follow_umask(partial)
        if last is not None:
            (folder / last).unlink(missing_ok=True)
        entries = sorted(partial.iterdir(), key=lambda path: path.name == last)
        for entry in entries:
            target = folder / entry.name
            if target.is_dir():
                shutil.rmtree(target)
            entry.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _follow_umask(folder: Path) -> None:
    """Let others read what a library wrote for its owner alone, as the umask would have it.

    What is a link to a file elsewhere is left alone: its owner may have meant it.
    """
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for path in folder.rglob("*"):
        found = path.lstat()
        if found.st_mode == stat.S_IFREG | stat.S_IRUSR | stat.S_IWUSR and found.st_nlink == 1:
            path.chmod(mode)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, which becomes it when the block ends without an error.

    After an error `path` is what it was before, and the temporary file is gone.
    """
    partial = path.with_name(f".partial_{path.name}.{os.getpid()}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401 - anything JSON can hold
    """Write strict JSON, whole or not at all; a number that is not finite becomes null."""
    text = json.dumps(_finite(value), indent=2, allow_nan=False, ensure_ascii=False)
    with whole_file(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:  # noqa: ANN401
    """Read a JSON file, or raise ValueError naming it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}). Make it anew.") from error


class _SafeLoader(yaml.SafeLoader):
    """Reads 3e-4 as a number, as YAML 1.2 does; PyYAML wants 3.0e-4."""


_SafeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("+-.0123456789"),
)


def read_yaml(path: Path, name: str) -> Any:  # noqa: ANN401
    """Read a YAML file, or raise ValueError naming it as `name`."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = " ".join(str(error).split())
        raise ValueError(f"{name} is not valid YAML: {where}.") from error


def _finite(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
