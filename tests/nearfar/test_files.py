"""What is written is whole: an error in between leaves what was there before."""

import errno
import json
import stat
from pathlib import Path

import numpy as np
import pytest

from nearfar.files import read_json, read_yaml, whole_file, whole_folder, write_json


def contents(folder: Path) -> dict[str, str]:
    """Return every file below a folder, hidden ones too, with its text."""
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Return a folder that holds an older result."""
    folder = tmp_path / "run"
    (folder / "plots").mkdir(parents=True)
    (folder / "a.txt").write_text("old a")
    (folder / "done.json").write_text("old done")
    (folder / "plots" / "gone.png").write_text("old plot")
    (folder / "other.txt").write_text("of somebody else")
    return folder


def disk_full(monkeypatch: pytest.MonkeyPatch, *, written: str) -> None:
    """Make the next writing of text stop halfway."""

    def write_text(path: Path, text: str, encoding: str | None = None) -> int:
        with path.open("w", encoding=encoding) as file:
            file.write(written)
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_text", write_text)


def test_files_appear_only_when_the_block_has_ended(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    with whole_folder(folder) as partial:
        (partial / "a.txt").write_text("a")
        (partial / "plots").mkdir()
        (partial / "plots" / "fan.png").write_text("plot")
        assert not (folder / "a.txt").exists()
    assert contents(folder) == {"a.txt": "a", "plots/fan.png": "plot"}
    assert {path.name for path in folder.iterdir()} == {"a.txt", "plots"}  # no temporary folder


def test_new_files_and_folders_take_the_place_of_old_ones_and_others_stay(old: Path) -> None:
    with whole_folder(old, last="done.json") as partial:
        (partial / "a.txt").write_text("new a")
        (partial / "done.json").write_text("new done")
        (partial / "plots").mkdir()
        (partial / "plots" / "fan.png").write_text("new plot")
    assert contents(old) == {
        "a.txt": "new a",
        "done.json": "new done",
        "plots/fan.png": "new plot",
        "other.txt": "of somebody else",
    }


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_error_in_the_block_leaves_the_folder_as_it_was(
    old: Path, error: type[BaseException]
) -> None:
    before = contents(old)

    def fail() -> None:
        with whole_folder(old, last="done.json") as partial:
            (partial / "a.txt").write_text("new a")
            (partial / "done.json").write_text("new done")
            raise error

    with pytest.raises(error):
        fail()
    assert contents(old) == before
    assert not list(old.glob(".partial_*"))


def test_a_full_disk_leaves_the_folder_as_it_was(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(old)
    disk_full(monkeypatch, written='{"a": ')
    with (
        pytest.raises(OSError, match="No space left"),
        whole_folder(old, last="done.json") as partial,
    ):
        write_json(partial / "done.json", {"a": 1})
    monkeypatch.undo()
    assert contents(old) == before
    assert not list(old.glob(".partial_*"))


def test_the_marker_is_away_while_files_move_and_comes_last(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved, marked = [], []
    replace = Path.replace

    def watched(path: Path, target: Path) -> Path:
        moved.append(path.name)
        marked.append((old / "done.json").exists())
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", watched)
    with whole_folder(old, last="done.json") as partial:
        for name in ("z.txt", "done.json", "a.txt"):
            (partial / name).touch()
    assert sorted(moved[:2]) == ["a.txt", "z.txt"]
    assert moved[2] == "done.json"
    assert not any(marked)


def test_an_interrupted_move_leaves_no_marker(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = Path.replace

    def failing(path: Path, target: Path) -> Path:
        if path.name == "b.txt":
            raise OSError(errno.EIO, "Input/output error", str(path))
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", failing)

    def write() -> None:
        with whole_folder(old, last="done.json") as partial:
            for name in ("a.txt", "b.txt", "done.json"):
                (partial / name).write_text("new")

    with pytest.raises(OSError, match="Input/output"):
        write()
    assert not (old / "done.json").exists()
    assert not list(old.glob(".partial_*"))


def test_a_file_is_as_it_was_until_the_new_one_is_whole(old: Path) -> None:
    before = contents(old)

    def write(name: str) -> None:
        with whole_file(old / name) as partial:
            partial.write_text("half of it")
            raise KeyboardInterrupt

    for name in ("a.txt", "new.txt"):
        with pytest.raises(KeyboardInterrupt):
            write(name)
        assert contents(old) == before  # nothing beside it, either
    with whole_file(old / "a.txt") as partial:
        partial.write_text("new a")
        assert (old / "a.txt").read_text() == "old a"
    assert contents(old) == before | {"a.txt": "new a"}


def test_others_may_read_what_was_written(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    with whole_folder(tmp_path / "run") as partial:
        (partial / "plots").mkdir()
    modes = [stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "run" / "plots", plain)]
    assert modes[0] == modes[1]  # the temporary folder itself is private


def test_json_reads_back_and_what_is_not_finite_is_null(tmp_path: Path) -> None:
    value = {
        "auc": float("nan"),
        "nested": [float("inf"), (1, -float("inf"))],
        "numpy": np.float64("nan"),
        "text": "Lüfter",
        "exact": 0.1 + 0.2,
        7: None,
    }
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert "NaN" not in text
    assert "Infinity" not in text
    assert "Lüfter" in text
    assert read_json(tmp_path / "a.json") == {
        "auc": None,
        "nested": [None, [1, None]],
        "numpy": None,
        "text": "Lüfter",
        "exact": 0.1 + 0.2,
        "7": None,
    }


def test_a_full_disk_leaves_the_old_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / "a.json", [1])
    disk_full(monkeypatch, written="[2, ")
    with pytest.raises(OSError, match="No space left"):
        write_json(tmp_path / "a.json", [2, 3])
    monkeypatch.undo()
    assert contents(tmp_path) == {"a.json": json.dumps([1], indent=2) + "\n"}


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1', b"\xff\xfe", b"[1,]"])
def test_a_damaged_json_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "metrics.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"metrics\.json is not valid JSON"):
        read_json(path)


@pytest.mark.parametrize("word", ["3e-4", "+3E-4", ".3e-3", "3.e-4", "3.0e-4", "0.0003"])
def test_yaml_reads_numbers_as_yaml_1_2_does(word: str, tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    path.write_text(f"options: {{value: {word}, name: 3e4x, text: '3e-4'}}")
    assert read_yaml(path, "it")["options"] == {"value": 3e-4, "name": "3e4x", "text": "3e-4"}


def test_yaml_makes_no_objects(tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    path.write_text("value: !!python/object/apply:pathlib.Path ['x']")
    with pytest.raises(ValueError, match="it is not valid YAML"):
        read_yaml(path, "it")


def test_what_a_library_wrote_for_its_owner_alone_follows_the_umask(tmp_path: Path) -> None:
    private = tmp_path.parent / f"{tmp_path.name}_private"
    with whole_folder(tmp_path) as partial:
        (partial / "deeper").mkdir()
        for name in ("model.safetensors", "deeper/adapter.safetensors", "read_only", "as_ever"):
            (partial / name).touch()
        for name, mode in (("model.safetensors", 0o600), ("deeper/adapter.safetensors", 0o600)):
            (partial / name).chmod(mode)
        (partial / "read_only").chmod(0o400)
        private.touch(mode=0o600)
        (partial / "linked").hardlink_to(private)
    due = (tmp_path / "as_ever").stat().st_mode
    for name in ("model.safetensors", "deeper/adapter.safetensors"):
        assert (tmp_path / name).stat().st_mode == due
    assert (tmp_path / "read_only").stat().st_mode & 0o777 == 0o400
    assert private.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("as_ever", "deeper", "linked", "model.safetensors", "read_only"),
    ]
