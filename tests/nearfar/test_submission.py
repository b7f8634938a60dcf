"""The challenge's CSV files: what is written reads back, and whatever is wrong is found."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.submission import (
    check_scores,
    list_faults,
    read_anomaly_scores,
    read_decisions,
    write_anomaly_scores,
    write_decisions,
)

CLIPS = [f"section_00_{index:04d}.wav" for index in range(6)]
SCORES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
DECISIONS = [0, 0, 0, 1, 1, 1]
EXPECTED = {("fan", 0): CLIPS, ("3DPrinter", 0): CLIPS}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a complete, right set of files."""
    for machine_type, section in EXPECTED:
        write_anomaly_scores(tmp_path, machine_type, section, CLIPS, SCORES)
        write_decisions(tmp_path, machine_type, section, CLIPS, DECISIONS)
    return tmp_path


def test_the_files_have_the_official_names_and_form(tmp_path: Path) -> None:
    names = ["section_00_0001.wav", "section_00_0000.wav"]
    scores = write_anomaly_scores(tmp_path / "new", "ToyDrone", 0, names, [1, 0.1])
    decisions = write_decisions(tmp_path / "new", "ToyDrone", 3, names, np.array([True, False]))
    assert scores == tmp_path / "new" / "anomaly_score_ToyDrone_section_00_test.csv"
    assert decisions == tmp_path / "new" / "decision_result_ToyDrone_section_03_test.csv"
    assert scores.read_bytes() == b"section_00_0000.wav,0.1\nsection_00_0001.wav,1.0\n"
    assert decisions.read_bytes() == b"section_00_0000.wav,0\nsection_00_0001.wav,1\n"
    assert len(list((tmp_path / "new").iterdir())) == 2  # no temporary file is left


@given(values=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=6))
def test_scores_read_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, values: list[float]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "round_trip"
    path = write_anomaly_scores(folder, "fan", 0, CLIPS[: len(values)], values)
    read = read_anomaly_scores(path)
    assert list(read) == CLIPS[: len(values)]
    assert np.array(list(read.values())).tobytes() == np.array(values, dtype=float).tobytes()


def test_float32_scores_read_back_as_the_same_float32(tmp_path: Path) -> None:
    scores = np.random.default_rng(0).normal(size=6).astype(np.float32)
    read = read_anomaly_scores(write_anomaly_scores(tmp_path, "fan", 0, CLIPS, scores))
    assert np.array_equal(np.array(list(read.values())).astype(np.float32), scores)


def test_decisions_read_back(folder: Path) -> None:
    path = folder / "decision_result_fan_section_00_test.csv"
    assert read_decisions(path) == dict(zip(CLIPS, DECISIONS, strict=True))


def test_writing_again_replaces_the_file_and_a_refusal_keeps_it(folder: Path) -> None:
    path = write_anomaly_scores(folder, "fan", 0, CLIPS, SCORES[::-1])
    assert read_anomaly_scores(path)[CLIPS[0]] == 0.6
    before = path.read_bytes()
    with pytest.raises(ValueError, match="NaN or infinite"):
        write_anomaly_scores(folder, "fan", 0, CLIPS, [np.nan] * 6)
    assert path.read_bytes() == before


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_cannot_be_ranked_is_not_written(tmp_path: Path, bad: float) -> None:
    with pytest.raises(ValueError, match="fan: 1 of 6 anomaly scores are NaN or infinite"):
        write_anomaly_scores(tmp_path, "fan", 0, CLIPS, [*SCORES[:5], bad])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [2, -1, 0.5, np.nan])
def test_a_decision_other_than_0_and_1_is_not_written(tmp_path: Path, bad: float) -> None:
    with pytest.raises(ValueError, match="a decision is 0 or 1, but"):
        write_decisions(tmp_path, "fan", 0, CLIPS, [*DECISIONS[:5], bad])


@pytest.mark.parametrize(
    "machine_type", ["", "../fan", "a/b", "a\\b", "/fan", "fan\n", ".", "-fan", "fan,x", "C:fan"]
)
def test_an_odd_machine_name_makes_no_path(tmp_path: Path, machine_type: str) -> None:
    inside = tmp_path / "inside"
    with pytest.raises(ValueError, match="cannot be part of a file name"):
        write_anomaly_scores(inside, machine_type, 0, CLIPS, SCORES)
    with pytest.raises(ValueError, match="cannot be part of a file name"):
        write_decisions(inside, machine_type, 0, CLIPS, DECISIONS)
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("section", [-1, 100])
def test_a_section_of_other_than_two_digits_is_refused(tmp_path: Path, section: int) -> None:
    with pytest.raises(ValueError, match=f"Section {section} of fan is not in 0..99"):
        write_anomaly_scores(tmp_path, "fan", section, CLIPS, SCORES)


@pytest.mark.parametrize("name", ["", "test/a.wav", "..\\a.wav", "..", "a,b.wav", "a\nb.wav", 'a"'])
def test_a_clip_name_that_is_no_base_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is not a clip's base name"):
        write_anomaly_scores(tmp_path, "fan", 0, [name], [0.5])


def test_names_that_come_twice_or_do_not_match_the_values_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'section_00_0001\.wav' came more than once"):
        write_anomaly_scores(tmp_path, "fan", 0, [CLIPS[1], CLIPS[0], CLIPS[1]], [1, 2, 3])
    with pytest.raises(ValueError, match="6 file names but 5 values"):
        write_anomaly_scores(tmp_path, "fan", 0, CLIPS, SCORES[:5])


# ---- check


def test_a_right_set_of_files_has_no_fault(folder: Path) -> None:
    check_scores(folder, EXPECTED)
    assert list_faults(folder, EXPECTED) == []


def test_the_order_of_the_rows_is_no_fault(folder: Path) -> None:
    path = folder / "anomaly_score_fan_section_00_test.csv"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    check_scores(folder, EXPECTED)


FAULTS: dict[str, tuple[str, Callable[[str], str], str]] = {
    "missing clip": (
        "anomaly_score",
        lambda text: text.replace("section_00_0002.wav,0.3\n", ""),
        "lacks 'section_00_0002.wav'.",
    ),
    "unknown clip": (
        "decision_result",
        lambda text: text + "section_00_0199.wav,1\n",
        "holds unknown 'section_00_0199.wav'.",
    ),
    "clip twice": (
        "anomaly_score",
        lambda text: text + "section_00_0005.wav,0.6\n",
        "repeats 'section_00_0005.wav'.",
    ),
    "not finite": (
        "anomaly_score",
        lambda text: text.replace("0.2", "nan"),
        "line 2: 'section_00_0001.wav,nan' is not a clip's base name and a finite number.",
    ),
    "infinite": (
        "anomaly_score",
        lambda text: text.replace("0.6", "1e999"),
        "line 6: 'section_00_0005.wav,1e999' is not a clip's base name and a finite number.",
    ),
    "no number": (
        "anomaly_score",
        lambda text: text.replace(",0.2", ""),
        "line 2: 'section_00_0001.wav' is not a clip's base name and a finite number.",
    ),
    "other decision": (
        "decision_result",
        lambda text: text.replace("0002.wav,0", "0002.wav,2"),
        "line 3: 'section_00_0002.wav,2' is not a clip's base name and 0 or 1.",
    ),
    "decision with a point": (
        "decision_result",
        lambda text: text.replace("0002.wav,0", "0002.wav,0.0"),
        "line 3: 'section_00_0002.wav,0.0' is not a clip's base name and 0 or 1.",
    ),
    "third column": (
        "decision_result",
        lambda text: text.replace("0002.wav,0", "0002.wav,0,1"),
        "line 3: 'section_00_0002.wav,0,1' is not a clip's base name and 0 or 1.",
    ),
    "header": (
        "anomaly_score",
        lambda text: "file_name,anomaly_score\n" + text,
        "line 1: 'file_name,anomaly_score' is not a clip's base name and a finite number.",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found_and_named(folder: Path, fault: str) -> None:
    kind, damage, expected = FAULTS[fault]
    path = folder / f"{kind}_fan_section_00_test.csv"
    damaged = damage(path.read_text())
    assert damaged != path.read_text()
    path.write_text(damaged)
    faults = list_faults(folder, EXPECTED)
    extra = {"header": ["file_name"]}.get(fault, [])  # a header is an unknown clip as well
    assert len(faults) == 1 + len(extra)
    assert faults[0].startswith(path.name)
    assert faults[0].endswith(expected)
    with pytest.raises(ValueError, match=path.name):
        check_scores(folder, EXPECTED)


def test_a_missing_file_and_an_empty_one_are_found(folder: Path) -> None:
    (folder / "decision_result_3DPrinter_section_00_test.csv").unlink()
    (folder / "anomaly_score_fan_section_00_test.csv").write_text("")
    assert list_faults(folder, EXPECTED) == [
        "anomaly_score_fan_section_00_test.csv lacks 'section_00_0000.wav', "
        "'section_00_0001.wav', 'section_00_0002.wav' and 3 more.",
        "decision_result_3DPrinter_section_00_test.csv is missing.",
    ]


def test_the_names_of_another_section_of_the_right_number_are_found(folder: Path) -> None:
    # The official evaluator compares only how many rows there are.
    others = [name.replace("section_00", "section_00_test") for name in CLIPS]
    write_anomaly_scores(folder, "fan", 0, others, SCORES)
    (lacks, unknown) = list_faults(folder, EXPECTED)
    assert "lacks 'section_00_0000.wav'" in lacks
    assert "holds unknown 'section_00_test_0000.wav'" in unknown


def test_decisions_that_no_threshold_on_the_scores_gives_are_found(folder: Path) -> None:
    write_decisions(folder, "fan", 0, CLIPS, [0, 1, 0, 1, 1, 1])
    (fault,) = list_faults(folder, EXPECTED)
    assert fault == (
        "fan section 00: no one threshold explains the decisions: 'section_00_0001.wav' (score "
        "0.2) is 1, 'section_00_0002.wav' (score 0.3) is 0."
    )
    write_decisions(folder, "fan", 0, CLIPS, [1] * 6)
    assert list_faults(folder, EXPECTED) == []


def test_all_faults_are_told_at_once(folder: Path) -> None:
    (folder / "decision_result_fan_section_00_test.csv").unlink()
    write_anomaly_scores(folder, "3DPrinter", 0, CLIPS[:5], SCORES[:5])
    with pytest.raises(ValueError, match="lacks") as caught:
        check_scores(folder, EXPECTED)
    assert len(str(caught.value).splitlines()) == 2


def test_a_file_that_is_no_text_is_a_fault(folder: Path) -> None:
    (folder / "anomaly_score_fan_section_00_test.csv").write_bytes(b"\xff\xfe\x00")
    assert "anomaly_score_fan_section_00_test.csv is not UTF-8 text." in list_faults(
        folder, EXPECTED
    )


def test_reading_refuses_what_the_check_would_find(folder: Path) -> None:
    scores = folder / "anomaly_score_fan_section_00_test.csv"
    scores.write_text("section_00_0000.wav,nan\nsection_00_0000.wav,1\n")
    with pytest.raises(ValueError, match="finite number") as caught:
        read_anomaly_scores(scores)
    assert "repeats 'section_00_0000.wav'" in str(caught.value)
    decisions = folder / "decision_result_fan_section_00_test.csv"
    decisions.write_text("section_00_0000.wav,yes\n")
    with pytest.raises(ValueError, match="0 or 1"):
        read_decisions(decisions)
    with pytest.raises(FileNotFoundError):
        read_decisions(folder / "absent.csv")
