"""A submission package is whole, and each thing that can be wrong with one is named."""

import copy
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from nearfar.files import write_json
from nearfar.submission import (
    check_package,
    meta_faults,
    package_faults,
    write_anomaly_scores,
    write_decisions,
    write_package,
)
from nearfar.submission.__main__ import main
from nearfar.submission.meta import development_results, meta_template, read_meta, write_meta
from nearfar.submission.package import System, evaluation_clips, package_notes

TEAM = "Doe_NFR"
CLIPS = [f"section_00_{i:04d}.wav" for i in range(8)]
MACHINES = ("ToyDrone", "Sander")
META: dict[str, Any] = {
    "submission": {
        "name": "Near and far",
        "abbreviation": "nearfar",
        "authors": [
            {
                "firstname": "Jane",
                "lastname": "Doe",
                "email": "jane@example.org",
                "corresponding": True,
                "affiliation": {"institution": "NFR", "department": None, "location": "Here"},
            }
        ],
    },
    "system": {
        "description": dict.fromkeys(
            (
                *("input_sampling_rate", "data_augmentation", "front_end", "acoustic_features"),
                *("embeddings", "machine_learning_method", "aggregation_method"),
                *("domain_adaptation_method", "domain_generalization_method"),
                *("ensemble_method_subsystem_count", "decision_making", "attribute_usage"),
                *("external_data_usage", "development_data_usage"),
            )
        ),
        "complexity": {"total_parameters": 90_000_000},
        "external_datasets": None,
        "source_code": "https://example.org/code",
    },
    "results": {
        "development_dataset": {"fan": {"auc_source": 61.5, "auc_target": 55, "pauc": None}}
    },
}


def score_folder(folder: Path, *, clips: list[str] = CLIPS) -> Path:
    for machine in MACHINES:
        scores = [0.1 * i for i in range(len(clips))]
        write_anomaly_scores(folder, machine, 0, clips, scores)
        write_decisions(folder, machine, 0, clips, [int(score > 0.35) for score in scores])
    (folder / "metrics.json").write_text("{}")  # a score folder has more than the CSVs
    return folder


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """Return a right package of two systems."""
    scores = score_folder(tmp_path / "scores")
    write_package(tmp_path / "package", [System(scores, META)] * 2, team=TEAM)
    return tmp_path / "package"


def test_a_package_has_the_challenges_folders_and_files(package: Path) -> None:
    files = sorted(path.relative_to(package).as_posix() for path in package.rglob("*.*"))
    expected = [f"{TEAM}_task2.zip"]
    for number in (1, 2):
        label = f"{TEAM}_task2_{number}"
        names = [f"{label}.meta.yaml"]
        for machine in MACHINES:
            names += [f"{kind}_{machine}_section_00_test.csv" for kind in KINDS]
        expected += [f"task2/{label}/{name}" for name in names]
    assert files == sorted(expected)
    meta = read_meta(package / "task2" / f"{TEAM}_task2_2" / f"{TEAM}_task2_2.meta.yaml")
    assert meta["submission"] == {"label": f"{TEAM}_task2_2", **META["submission"]}
    assert {key: meta[key] for key in ("system", "results")} == {
        key: META[key] for key in ("system", "results")
    }
    assert package_faults(package) == []


KINDS = ("anomaly_score", "decision_result")


def test_the_zip_holds_the_same_and_is_checked_likewise(package: Path) -> None:
    archive = package / f"{TEAM}_task2.zip"
    names = zipfile.ZipFile(archive).namelist()
    files = [p for p in (package / "task2").rglob("*") if p.is_file()]
    assert sorted(names) == sorted(path.relative_to(package).as_posix() for path in files)
    assert package_faults(archive) == []
    (package / "broken.zip").write_text("no zip")
    assert package_faults(package / "broken.zip") == [
        "broken.zip is no whole zip file: File is not a zip file."
    ]


def test_a_package_written_again_is_the_same_bytes(package: Path, tmp_path: Path) -> None:
    again = write_package(tmp_path / "b", [System(tmp_path / "scores", META)] * 2, team=TEAM)
    assert again.read_bytes() == (package / again.name).read_bytes()


def test_null_is_written_as_the_challenge_writes_it(package: Path) -> None:
    text = next(package.rglob("*_1.meta.yaml")).read_text()
    assert "pauc: !!null\n" in text
    assert "department: !!null\n" in text
    assert ": null" not in text


def test_a_report_lies_beside_the_systems(tmp_path: Path) -> None:
    scores, report = score_folder(tmp_path / "scores"), tmp_path / "paper.pdf"
    report.write_bytes(b"%PDF-1.7\n")
    write_package(tmp_path / "p", [System(scores, META)], team=TEAM, report=report)
    assert (tmp_path / "p" / "task2" / f"{TEAM}_task2_1.technical_report.pdf").is_file()
    report.write_bytes(b"text")
    with pytest.raises(ValueError, match="is not a PDF"):
        write_package(tmp_path / "q", [System(scores, META)], team=TEAM, report=report)


def test_a_fifth_system_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    scores = score_folder(tmp_path / "scores")
    with pytest.raises(ValueError, match="5 systems came; a submission has 1 to 4"):
        write_package(tmp_path / "p", [System(scores, META)] * 5, team=TEAM)
    with pytest.raises(ValueError, match="0 systems came"):
        write_package(tmp_path / "p", [], team=TEAM)
    with pytest.raises(ValueError, match="team='Doe' is not of the form <Surname>_<INST>"):
        write_package(tmp_path / "p", [System(scores, META)], team="Doe")
    assert not (tmp_path / "p").exists()


def test_a_system_at_fault_leaves_the_package_that_was_there(package: Path, tmp_path: Path) -> None:
    before = (package / f"{TEAM}_task2.zip").read_bytes()
    (tmp_path / "scores" / "decision_result_Sander_section_00_test.csv").unlink()
    with pytest.raises(ValueError, match=r"decision_result_Sander_section_00_test\.csv is missing"):
        write_package(package, [System(tmp_path / "scores", META)], team=TEAM)
    assert (package / f"{TEAM}_task2.zip").read_bytes() == before
    assert package_faults(package) == []


def system(package: Path, number: int = 1) -> Path:
    return package / "task2" / f"{TEAM}_task2_{number}"


def edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    def damage(package: Path) -> None:
        path = system(package) / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return damage


def edit_meta(*keys: str, value: Any = None, delete: bool = False) -> Callable[[Path], None]:
    def damage(package: Path) -> None:
        path = system(package) / f"{TEAM}_task2_1.meta.yaml"
        meta = part = read_meta(path)
        for key in keys[:-1]:
            part = part[key]
        if delete:
            del part[keys[-1]]
        else:
            part[keys[-1]] = value
        write_meta(path, meta)

    return damage


def add_systems(package: Path) -> None:
    for number in (3, 4, 5):
        label = f"{TEAM}_task2_{number}"
        shutil.copytree(system(package), system(package, number))
        meta = system(package, number) / f"{label}.meta.yaml"
        (system(package, number) / f"{TEAM}_task2_1.meta.yaml").rename(meta)
        meta.write_text(meta.read_text().replace(f"{TEAM}_task2_1", label))


def lose_a_machine(package: Path) -> None:
    for path in system(package, 2).glob("*Sander*"):
        path.unlink()


def lose_a_clip_in_all(package: Path, clip: str = "_0003.wav") -> None:
    for path in package.rglob("*Sander*.csv"):
        lines = [line for line in path.read_text().splitlines() if clip not in line]
        path.write_text("\n".join(lines) + "\n")


SCORES = "anomaly_score_Sander_section_00_test.csv"
DECISIONS = "decision_result_Sander_section_00_test.csv"
FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "clip twice": (
        edit(SCORES, "section_00_0002.wav,", "section_00_0001.wav,0.1\nsection_00_0002.wav,"),
        f"{SCORES} repeats 'section_00_0001.wav'",
    ),
    "clip missing": (
        edit(DECISIONS, "section_00_0002.wav,0\n", ""),
        f"{DECISIONS} lacks 'section_00_0002.wav'",
    ),
    "clip missing everywhere": (
        lose_a_clip_in_all,
        "Sander section 00 lacks 1 of its numbers, such as section_00_0003.wav",
    ),
    "first clip missing everywhere": (
        lambda p: lose_a_clip_in_all(p, "_0000.wav"),
        "Sander section 00 lacks 1 of its numbers, such as section_00_0000.wav",
    ),
    "empty files": (
        lambda p: [path.write_text("") for path in system(p).glob("*Sander*.csv")],
        "the files of Sander section 00 name no clip",
    ),
    "folder for a file": (
        lambda p: [(system(p) / SCORES).unlink(), (system(p) / SCORES).mkdir()],
        f"{SCORES} is missing",
    ),
    "number as Python writes it": (
        edit(SCORES, "wav,0.0", "wav,1_0.0"),
        "is not a clip's base name and a finite number",
    ),
    "nan": (edit(SCORES, "wav,0.0", "wav,nan"), "is not a clip's base name and a finite number"),
    "decision": (edit(DECISIONS, "wav,1", "wav,1.0"), "is not a clip's base name and 0 or 1"),
    "machine missing": (lose_a_machine, f"{SCORES} is missing"),
    "no csv": (
        lambda p: [path.unlink() for path in system(p).glob("*.csv")],
        "there is no anomaly_score_<machine>_section_00_test.csv",
    ),
    "fifth system": (add_systems, f"There are 5 systems, but 4 may be: {TEAM}_task2_5 is too many"),
    "number": (
        lambda p: system(p, 2).rename(system(p, 7)),
        f"{TEAM}_task2_7: systems have the numbers 1 to 4",
    ),
    "label": (
        lambda p: system(p, 2).rename(system(p, 2).with_name("second")),
        "second is not a label <Surname>_<INST>_task2_<1..4>",
    ),
    "other team": (
        lambda p: system(p, 2).rename(system(p, 2).with_name("Roe_ABC_task2_2")),
        "The systems are of several teams: Doe_NFR, Roe_ABC",
    ),
    "stray file": (
        lambda p: (system(p) / "notes.txt").write_text("x"),
        "notes.txt does not belong into a submission",
    ),
    "stray file above": (
        lambda p: (p / "task2" / "notes.txt").write_text("x"),
        "task2/notes.txt does not belong into a submission",
    ),
    "report": (
        lambda p: (p / "task2" / f"{TEAM}_task2_1.technical_report.pdf").write_text("soon"),
        f"task2/{TEAM}_task2_1.technical_report.pdf is not a PDF file",
    ),
    "no results": (
        edit_meta("results", "development_dataset", value={}),
        "results.development_dataset names no machine",
    ),
    "no meta": (
        lambda p: next(system(p).glob("*.yaml")).unlink(),
        f"{TEAM}_task2_1.meta.yaml is missing",
    ),
    "bad yaml": (
        edit(f"{TEAM}_task2_1.meta.yaml", "submission:", "submission: ["),
        "meta.yaml is not valid YAML",
    ),
    "yaml is a list": (
        lambda p: next(system(p).glob("*.yaml")).write_text("- a\n"),
        "meta.yaml must be a mapping",
    ),
    "unknown key": (
        edit_meta("system", "description", "frontend", value="x"),
        "system.description.frontend is an unknown key. Did you mean 'front_end'?",
    ),
    "missing key": (
        edit_meta("system", "complexity", "total_parameters", delete=True),
        "system.complexity.total_parameters is missing",
    ),
    "missing section": (edit_meta("results", delete=True), "results is missing"),
    "count": (
        edit_meta("system", "complexity", "total_parameters", value="90M"),
        "system.complexity.total_parameters must be a whole number, got '90M'",
    ),
    "text": (
        edit_meta("submission", "name", value=""),
        "submission.name must be text, got ''",
    ),
    "abbreviation": (
        edit_meta("submission", "abbreviation", value="near_and_far"),
        "'near_and_far' has 12 characters; at most 10 are allowed",
    ),
    "other label": (
        edit_meta("submission", "label", value=f"{TEAM}_task2_2"),
        f"submission.label is '{TEAM}_task2_2', but the folder is '{TEAM}_task2_1'",
    ),
    "no authors": (edit_meta("submission", "authors", value=[]), "submission.authors is empty"),
    "authors": (
        edit_meta("submission", "authors", value="Jane Doe"),
        "submission.authors must be a list, got 'Jane Doe'",
    ),
    "author": (
        edit_meta("submission", "authors", 0, "email", delete=True),
        "submission.authors[0].email is missing",
    ),
    "corresponding": (
        edit_meta("submission", "authors", 0, "corresponding", value=False),
        "submission.authors has no one with `corresponding: true`",
    ),
    "percent": (
        edit_meta("results", "development_dataset", "fan", value={"auc_source": 0.6}),
        "results.development_dataset.fan must have the keys ['auc_source', 'auc_target', 'pauc']",
    ),
    "fractions": (
        edit_meta(
            "results",
            "development_dataset",
            "fan",
            value={"auc_source": 0.6, "auc_target": 0.5, "pauc": 0.5},
        ),
        "development_dataset.fan has values up to 0.6; they are percentages: times 100",
    ),
    "beyond": (
        edit_meta("results", "development_dataset", "fan", "pauc", value=610),
        "development_dataset.fan must have percentages or null",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_named(package: Path, fault: str) -> None:
    damage, expected = FAULTS[fault]
    damage(package)
    faults = package_faults(package)
    assert [text for text in faults if expected in text], faults
    with pytest.raises(ValueError, match=re.escape(faults[0])):
        check_package(package)


def test_a_zip_that_cannot_be_unpacked_or_holds_more_than_the_submission_is_named(
    package: Path, tmp_path: Path
) -> None:
    archive = package / f"{TEAM}_task2.zip"
    with zipfile.ZipFile(archive, "a") as added:
        added.writestr("__MACOSX/junk", "x")
    assert package_faults(archive) == ["__MACOSX does not belong into a submission's zip."]
    content = bytearray(archive.read_bytes())
    content[6] |= 1  # the first file is encrypted, says its header, and so says the directory
    content[content.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(content)
    assert "password" in package_faults(archive)[0]
    other = tmp_path / "other.zip"
    with zipfile.ZipFile(other, "w") as made:
        made.writestr("readme.txt", "x")
    assert package_faults(other) == [
        "other.zip does not hold task2/, where all of a submission lies."
    ]


def test_a_machine_with_fewer_clips_at_the_end_is_worth_a_note(package: Path) -> None:
    assert not [note for note in package_notes(package) if "numbers of clips" in note]
    lose_a_clip_in_all(package, "_0007.wav")
    assert package_faults(package) == []
    assert "(Sander 7, ToyDrone 8)" in package_notes(package)[1]


def test_all_faults_are_named_at_once_with_their_system(package: Path) -> None:
    for fault in ("nan", "abbreviation", "stray file"):
        FAULTS[fault][0](package)
    faults = package_faults(package)
    assert len(faults) == 3
    assert all(text.startswith(f"{TEAM}_task2_1: ") for text in faults)


def test_with_the_test_clips_at_hand_every_one_must_be_there(package: Path, tmp_path: Path) -> None:
    for machine in MACHINES:
        folder = tmp_path / "data" / "eval_data" / "raw" / machine / "test"
        folder.mkdir(parents=True)
        for name in [*CLIPS, "section_00_0008.wav"]:
            (folder / name).touch()
    clips = evaluation_clips(tmp_path / "data")
    assert clips == {(machine, 0): [*CLIPS, "section_00_0008.wav"] for machine in sorted(MACHINES)}
    faults = package_faults(package, expected=clips)
    assert len(faults) == 2 * 2 * 2
    assert all("lacks 'section_00_0008.wav'" in text for text in faults)
    complete = dict.fromkeys(clips, CLIPS)
    assert package_faults(package, expected=complete) == []
    del complete["Sander", 0]
    assert (
        "Sander section 00 is no machine of this submission"
        in package_faults(package, expected=complete)[0]
    )
    with pytest.raises(FileNotFoundError, match="holds no test clips"):
        evaluation_clips(tmp_path / "package")


def test_the_template_filled_in_has_no_fault() -> None:
    meta = yaml.safe_load(meta_template())
    faults = meta_faults(meta, label="Doe_NFR_task2_1")
    assert "submission.name must be text, got ''." in faults
    meta["submission"] = {"label": "Doe_NFR_task2_1", **META["submission"]}
    meta["results"] = META["results"]
    assert meta_faults(meta, label="Doe_NFR_task2_1") == []


def test_development_results_are_percentages_of_each_machine_type() -> None:
    values = {"auc_source": 0.61234, "auc_target": 0.5, "pauc": 0.4999, "f1_source": 0.3}
    assert development_results({"machines": {"2026/fan/00": values}}) == {
        "fan": {"auc_source": 61.23, "auc_target": 50.0, "pauc": 49.99}
    }
    with pytest.raises(ValueError, match="fan has several sections"):
        development_results({"machines": {"2022/fan/00": values, "2022/fan/01": values}})
    unknown = values | {"pauc": None, "reason": "It has no anomaly."}
    with pytest.raises(ValueError, match=r"2026/fan/00 has no \['pauc'\] .* It has no anomaly"):
        development_results({"machines": {"2026/fan/00": unknown}})


def test_the_command_writes_and_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = score_folder(tmp_path / "scores")
    development = tmp_path / "development"
    development.mkdir()
    values = {"auc_source": 0.7, "auc_target": 0.6, "pauc": 0.55}
    write_json(development / "metrics.json", {"machines": {"2026/fan/00": values}})
    mine = copy.deepcopy(META)
    del mine["results"]
    write_meta(tmp_path / "me.yaml", mine)
    words = ["write", "--scores", scores, scores, "--meta", tmp_path / "me.yaml", "--team", TEAM]
    words += ["--development", development, "--output_dir", tmp_path / "out"]
    assert main([str(word) for word in words]) == 0
    meta = read_meta(next((tmp_path / "out").rglob("*_2.meta.yaml")))
    assert meta["results"] == {
        "development_dataset": {"fan": {"auc_source": 70.0, "auc_target": 60.0, "pauc": 55.0}}
    }
    capsys.readouterr()
    assert main(["check", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == (
        "note: There is no technical report (<team>_task2_1.technical_report.pdf) yet.\nno fault\n"
    )
    FAULTS["nan"][0](tmp_path / "out")
    assert main(["check", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().out.endswith("1 fault\n")
    assert main(["check", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.startswith("error: There is no ")
    assert main(["template"]) == 0
    assert capsys.readouterr().out == meta_template()
