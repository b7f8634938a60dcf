"""Ground truth of evaluation sets is read as it is published, or refused with the line at fault."""

from pathlib import Path

import pytest

from data_scripts.factory import simulate_factory
from data_scripts.ground_truth import read_ground_truth
from data_scripts.near_far import known, load_near_far
from nearfar.schema import GroundTruth


def write(folder: Path, data: str, domain: str, name: str = "fan") -> None:
    for kind, text in (("data", data), ("domain", domain)):
        path = folder / f"ground_truth_{kind}" / f"ground_truth_{name}_section_00_test.csv"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


DATA = "section_00_0001.wav,1\nsection_00_0000.wav,0\n"
DOMAIN = "section_00_0000.wav,1\nsection_00_0001.wav,0\n"


def test_the_evaluators_folders_are_read_whatever_their_order(tmp_path: Path) -> None:
    write(tmp_path, DATA, DOMAIN)
    assert read_ground_truth(tmp_path, year=2026) == {
        "2026/fan/00": {
            "section_00_0000.wav": GroundTruth("normal", "target"),
            "section_00_0001.wav": GroundTruth("anomaly", "source"),
        }
    }


def test_what_the_factory_writes_is_read_back_as_it_is(tmp_path: Path) -> None:
    simulate_factory(
        tmp_path,
        num_machines=1,
        eval_machines=1,
        seed=3,
        source_train=2,
        target_train=2,
        test_per_group=2,
        seconds=1.0,
        num_workers=1,
    )
    truth = read_ground_truth(tmp_path, year=2026)
    rows = known(load_near_far(tmp_path, subsets=["eval_test"])["test"])
    (machine,) = truth
    assert {row["machine"] for row in rows} == {machine}
    assert {row["condition"] for row in rows} == {None}  # the names tell nothing
    assert sorted(truth[machine]) == sorted(row["file_name"] for row in rows)
    told_apart = list(truth[machine].values())
    for condition in ("anomaly", "normal"):
        for domain in ("source", "target"):
            assert told_apart.count(GroundTruth(condition, domain)) == 2
    full_names = tmp_path / "ground_truth_attributes"
    for line in next(full_names.glob("*.csv")).read_text().splitlines():
        name, full = line.split(",")
        told = truth[machine][name]
        assert f"_{told.domain}_test_{told.condition}_" in full


def test_2020_has_no_domains(tmp_path: Path) -> None:
    write(tmp_path, "id_01_00000000.wav,1\n", "")
    truth = read_ground_truth(tmp_path, year=2020)
    assert truth == {"2020/fan/00": {"id_01_00000000.wav": GroundTruth("anomaly", None)}}


LIST = """fan
section_00_0000.wav,section_00_target_test_anomaly_0007_m-n_W.wav

ToyCar
section_00_0000.wav,section_00_source_normal_0035_car_A.wav
section_00_0001.wav,section_00_target_test_normal_0036_noAttribute.wav,
"""


def test_the_baselines_list_is_read_by_machine(tmp_path: Path) -> None:
    path = tmp_path / "eval_data_list_2024.csv"
    path.write_text(LIST)
    assert read_ground_truth(path, year=2024) == {
        "2024/fan/00": {"section_00_0000.wav": GroundTruth("anomaly", "target")},
        "2024/ToyCar/00": {
            "section_00_0000.wav": GroundTruth("normal", "source"),
            "section_00_0001.wav": GroundTruth("normal", "target"),
        },
    }


def test_the_list_of_2020_has_the_condition_in_a_column(tmp_path: Path) -> None:
    path = tmp_path / "eval_data_list.csv"
    path.write_text(
        "fan\nid_01_00000000.wav,anomaly_id_01_00000000.wav,1\n"
        "id_03_00000000.wav,normal_id_03_00000000.wav,0\n"
    )
    assert read_ground_truth(path, year=2020) == {
        "2020/fan/01": {"id_01_00000000.wav": GroundTruth("anomaly", None)},
        "2020/fan/03": {"id_03_00000000.wav": GroundTruth("normal", None)},
    }


@pytest.mark.parametrize(
    ("data", "domain", "message"),
    [
        (
            DATA + "section_00_0002.wav,2\n",
            DOMAIN,
            r"line 3: .* is not a clip's name and 0",
        ),
        (DATA + "section_00_0002.wav\n", DOMAIN, r"data.*, line 3"),
        (DATA + DATA[:22], DOMAIN, r"data.*, line 3: section_00_0001.wav comes a second time"),
        (DATA, DOMAIN + "section_00_0002.wav,0\n", r"tell 1 clips apart, such as section_00_0002"),
        (DATA, DOMAIN.replace(",1", ",x"), r"ground_truth_domain.*, line 1"),
    ],
)
def test_a_damaged_file_is_refused_with_its_line(
    tmp_path: Path, data: str, domain: str, message: str
) -> None:
    write(tmp_path, data, domain)
    with pytest.raises(ValueError, match=message):
        read_ground_truth(tmp_path, year=2026)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("section_00_0000.wav,section_00_target_test_anomaly_0007_a.wav\n", "line 1: .* machine"),
        ("fan\nsection_00_0000.wav,whatever.wav\n", "line 2: 'whatever.wav' is not a DCASE"),
        (
            "fan\nsection_00_0000.wav,section_00_0000.wav\n",
            "line 2: .* does not tell the cond",
        ),
        (LIST + LIST.splitlines()[4] + "\n", "line 7: section_00_0000.wav comes a second time"),
    ],
)
def test_a_damaged_list_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "eval_data_list_2024.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_ground_truth(path, year=2024)


def test_what_is_not_there_is_asked_for_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no ground_truth_data/ground_truth_"):
        read_ground_truth(tmp_path, year=2026)
    write(tmp_path, DATA, DOMAIN)
    (tmp_path / "ground_truth_domain" / "ground_truth_fan_section_00_test.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"no .*ground_truth_domain"):
        read_ground_truth(tmp_path, year=2026)
