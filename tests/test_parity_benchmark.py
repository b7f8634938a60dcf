"""The table of differences from the authors' outputs names each array, and notices a wrong one."""

import shutil

import pytest
from safetensors.torch import load_file, save_file

from benchmarks import parity
from tests.modeling.encoders import FIXTURES


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(FIXTURES / "beats", tmp_path / "beats")
    return tmp_path


def test_each_array_is_within_its_tolerance(folder, capsys) -> None:
    rows = parity.parity_rows(folder)
    assert {array for _, _, array, _, _ in rows} >= {"fbank", "layers", "features", "probs"}
    assert all(0 <= error <= tolerance for *_, error, tolerance in rows)
    parity.main([str(folder)])
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(rows)


def test_a_wrong_array_ends_with_an_error(folder) -> None:
    path = folder / "beats" / "io.safetensors"
    arrays = load_file(path)
    save_file(arrays | {"probs": arrays["probs"] + 1e-3}, path)
    with pytest.raises(ValueError, match="1 of"):
        parity.main([str(folder)])
    save_file(arrays | {"probs": arrays["probs"][:1]}, path)
    with pytest.raises(ValueError, match="probs is"):
        parity.main([str(folder)])


@pytest.mark.parametrize("arguments", [[], ["a", "b"]])
def test_one_folder_is_due(arguments) -> None:
    with pytest.raises(ValueError, match="one folder"):
        parity.main(arguments)


def test_a_folder_without_fixtures_is_refused(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"io\.safetensors"):
        parity.main([str(tmp_path)])
