"""The recordings of DCASE Task 2, 2020 to 2026: what was published where, and how to fetch it.

    python -m data_scripts.dcase --year 2026 --subset dev --output_dir DATA

Each archive is downloaded (resumed where a `.part` lies), compared with its published size and MD5,
and unpacked into `DATA/{dev,eval}_data/raw/<machine>/`. What is complete is not fetched again.
"""

import argparse
import filecmp
import json
import logging
import shutil
import sys
import threading
import zipfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath

import requests
from tqdm.contrib.logging import logging_redirect_tqdm

from .archives import (
    ByteProgress,
    DownloadError,
    Transfer,
    WrongContentError,
    fetch,
    unpack,
)

logger = logging.getLogger(__name__)

BASE_URL = "https://zenodo.org"
SUBSETS = {"dev": "dev_data", "eval_train": "eval_data", "eval_test": "eval_data"}  # -> folder

# Archive name of a machine, by subset.
_NAMES = {"dev": "dev_{}", "eval_train": "eval_data_{}_train", "eval_test": "eval_data_{}_test"}
_NAMES_2021 = {**_NAMES, "dev": "dev_data_{}"}
_NAMES_2020 = {
    "dev": "dev_data_{}",
    "eval_train": "eval_data_train_{}",
    "eval_test": "eval_data_test_{}",
}
_SPLIT_FOLDERS = {"train", "test", "source_test", "target_test", "supplemental"}


@dataclass(frozen=True, slots=True)
class Edition:
    """What one year published.

    Attributes:
        dev_machines: Machine types of the development set.
        eval_machines: Machine types of the evaluation set.
        records: Zenodo record of each subset.
        names: File name of an archive without `.zip`, by subset, `{}` being the machine type.
        replaced: Names of archives that a later file of the same record replaced -> that file.
    """

    dev_machines: tuple[str, ...]
    eval_machines: tuple[str, ...]
    records: dict[str, int]
    names: dict[str, str] = field(default_factory=lambda: _NAMES)
    replaced: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Archive:
    """One zip of one machine; size and MD5 are None where they are not known here."""

    year: int
    subset: str
    machine_type: str
    record_id: int
    file_name: str
    size: int | None = None
    md5: str | None = None

    @property
    def url_path(self) -> str:
        """Return its address below the base URL."""
        return f"/records/{self.record_id}/files/{self.file_name}"

    def machine_folder(self, output_dir: Path) -> Path:
        """Return where it is unpacked."""
        return output_dir / SUBSETS[self.subset] / "raw" / self.machine_type

    def marker(self, output_dir: Path) -> Path:
        """Return the file that says the archive is there in full, and under which conditions."""
        return self.machine_folder(output_dir) / f".{self.file_name}.completed"


def _records(dev: int, eval_train: int, eval_test: int) -> dict[str, int]:
    return {"dev": dev, "eval_train": eval_train, "eval_test": eval_test}


_MACHINES_2020 = ("fan", "pump", "slider", "valve", "ToyCar", "ToyConveyor")
_MACHINES_2021 = ("fan", "gearbox", "pump", "slider", "ToyCar", "ToyTrain", "valve")
_MACHINES_2022 = ("bearing", "fan", "gearbox", "slider", "ToyCar", "ToyTrain", "valve")

# Machine names come again with other recordings: fan in every year, ToothBrush in 2024 and 2026.
EDITIONS = {
    2020: Edition(
        _MACHINES_2020, _MACHINES_2020, _records(3678171, 3727685, 3841772), names=_NAMES_2020
    ),
    2021: Edition(
        _MACHINES_2021, _MACHINES_2021, _records(4562016, 4660992, 4884786), names=_NAMES_2021
    ),
    2022: Edition(_MACHINES_2022, _MACHINES_2022, _records(6355122, 6462969, 6586456)),
    2023: Edition(
        _MACHINES_2022,
        ("bandsaw", "grinder", "shaker", "ToyDrone", "ToyNscale", "ToyTank", "Vacuum"),
        _records(7882613, 7830345, 7860847),
    ),
    2024: Edition(
        _MACHINES_2022,
        (
            "3DPrinter",
            "AirCompressor",
            "BrushlessMotor",
            "HairDryer",
            "HoveringDrone",
            "RoboticArm",
            "Scanner",
            "ToothBrush",
            "ToyCircuit",
        ),
        _records(10902294, 11259435, 11363076),  # 11259435 superseded 11183284
        replaced={
            "eval_data_3DPrinter_train": "eval_data_3DPrinter_train_r2",
            "eval_data_RoboticArm_train": "eval_data_RoboticArm_train_r2",
        },
    ),
    2025: Edition(
        _MACHINES_2022,
        (
            "AutoTrash",
            "HomeCamera",
            "ToyPet",
            "ToyRCCar",
            "BandSealer",
            "CoffeeGrinder",
            "Polisher",
            "ScrewFeeder",
        ),
        _records(15097779, 15392814, 15519362),
    ),
    2026: Edition(
        ("ToyCar", "ToyCarEmu", "bearingEmu", "fan", "gearboxEmu", "sliderEmu", "valveEmu"),
        ("BlowerDustCollector", "Sander", "SewingMachine", "ToothBrush", "ToyDrone"),
        _records(19336329, 20151556, 20437238),
        replaced={"dev_ToyCar": "dev_ToyCar_r2"},
    ),
}

# (record, file name) -> bytes (None: not known) and MD5, as published.
_PUBLISHED: dict[tuple[int, str], tuple[int | None, str]] = {
    (19336329, "dev_ToyCar_r2.zip"): (722655322, "353201db217e25377a7e7eccf9c1c8a7"),
    (19336329, "dev_ToyCarEmu.zip"): (815490762, "187b0b3f84d2452d8944d5c831305f15"),
    (19336329, "dev_bearingEmu.zip"): (608240380, "82c2d04c5f48d09842152c34ef273667"),
    (19336329, "dev_fan.zip"): (704228804, "58b79bac4b05bf14a11e9d53e6cdfae9"),
    (19336329, "dev_gearboxEmu.zip"): (681113572, "21ef8b6dea66472bc4e7c91a175efdb7"),
    (19336329, "dev_sliderEmu.zip"): (694421981, "1cbc87a09883a1aa05a6b2a4308efb83"),
    (19336329, "dev_valveEmu.zip"): (574561173, "f7f74e59773eefa512f24625d88d58f0"),
    (20151556, "eval_data_BlowerDustCollector_train.zip"): (
        None,
        "e79342948772cf51e50ff601cd9621f3",
    ),
    (20151556, "eval_data_Sander_train.zip"): (None, "6cbcfbc65a09c4f3d00b9a55c50502ec"),
    (20151556, "eval_data_SewingMachine_train.zip"): (None, "74d08cacba3da88753badd69d19e577b"),
    (20151556, "eval_data_ToothBrush_train.zip"): (None, "6fa5f81796b5d37b3ed24bb8eff2ea25"),
    (20151556, "eval_data_ToyDrone_train.zip"): (None, "af3e4040ef7c67d7ee920608d0c38d82"),
    (20437238, "eval_data_BlowerDustCollector_test.zip"): (
        None,
        "ec90d56f189e84e6430fb2878c59cb84",
    ),
    (20437238, "eval_data_Sander_test.zip"): (None, "05f81c9a80e91c7b3cea15f8e8559b44"),
    (20437238, "eval_data_SewingMachine_test.zip"): (None, "f0a1a96b48006c301e8cec25e9214046"),
    (20437238, "eval_data_ToothBrush_test.zip"): (None, "987395506fbb48c570d5d26babcab05e"),
    (20437238, "eval_data_ToyDrone_test.zip"): (None, "b36102371c188b630d201d443a00bab2"),
}


def list_archives(
    year: int, subset: str, *, machine_types: Iterable[str] | None = None
) -> list[Archive]:
    """Return the archives of one year's subset, of all machines or of those named.

    Raises:
        ValueError: There is no such year, subset or machine.
    """
    if year not in EDITIONS:
        raise ValueError(f"There is no year {year}. Choose from: {_listed(map(str, EDITIONS))}.")
    if subset not in SUBSETS:
        raise ValueError(f"There is no subset {subset!r}. Choose from: {_listed(SUBSETS)}.")
    edition = EDITIONS[year]
    known = edition.dev_machines if subset == "dev" else edition.eval_machines
    chosen = known if machine_types is None else tuple(dict.fromkeys(machine_types))
    unknown = [machine_type for machine_type in chosen if machine_type not in known]
    if unknown:
        raise ValueError(
            f"{year}'s subset {subset!r} has no machine {unknown[0]!r}. "
            f"Choose from: {_listed(known)}."
        )
    record_id = edition.records[subset]
    archives = []
    for machine_type in chosen:
        name = edition.names[subset].format(machine_type)
        file_name = f"{edition.replaced.get(name, name)}.zip"
        size, md5 = _PUBLISHED.get((record_id, file_name), (None, None))
        archives.append(Archive(year, subset, machine_type, record_id, file_name, size, md5))
    return archives


def download_dcase(
    output_dir: Path,
    *,
    year: int = 2026,
    subset: str = "dev",
    machine_types: Iterable[str] | None = None,
    num_workers: int = 4,
    keep_archives: bool = False,
    base_url: str = BASE_URL,
    transfer: Transfer | None = None,
) -> list[Path]:
    """Fetch, verify and unpack a year's subset; what is there already is left alone.

    Args:
        output_dir: One year's folder: the same machine names mean other recordings in other years.
        year: 2020 to 2026.
        subset: "dev", "eval_train" or "eval_test".
        machine_types: Such as ["fan"]; None for all of them.
        num_workers: Archives fetched at the same time.
        keep_archives: Leave the zips in `output_dir/archives`.
        base_url: Where the records are.
        transfer: Timeouts and retries.

    Returns:
        The machines' folders.

    Raises:
        ValueError: No such year, subset or machine, or `output_dir` holds another year.
        DownloadError: Some archives failed; the message lists them. The others are in place.
        KeyboardInterrupt: Interrupted; what was downloaded is resumed next time.
    """
    archives = list_archives(year, subset, machine_types=machine_types)
    _refuse_other_years(output_dir, year)
    transfer = transfer or Transfer()
    missing = [archive for archive in archives if not _is_complete(archive, output_dir)]
    logger.info("%d of %d archives are in place.", len(archives) - len(missing), len(archives))
    missing = _with_published_checksums(missing, base_url, transfer)
    run = _Run(output_dir, base_url, keep_archives, transfer, ByteProgress())
    for archive in missing:
        if archive.size is not None:
            run.progress.expect(archive.file_name, archive.size)
    failures: dict[str, str] = {}
    with ThreadPoolExecutor(max_workers=num_workers) as pool:
        futures = {pool.submit(run.install, archive): archive for archive in missing}
        try:
            for future in as_completed(futures):
                file_name = futures[future].file_name
                try:
                    future.result()
                    logger.info("%s is in place.", file_name)
                except (DownloadError, OSError) as error:
                    failures[file_name] = str(error)
                    logger.error("%s failed: %s", file_name, error)
        except KeyboardInterrupt:
            transfer.stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        finally:
            run.progress.close()
    _remove_empty(output_dir / "archives")
    if failures:
        listed = "".join(f"\n  {name}: {reason}" for name, reason in sorted(failures.items()))
        raise DownloadError(f"{len(failures)} of {len(archives)} archives failed:{listed}")
    return [archive.machine_folder(output_dir) for archive in archives]


@dataclass(frozen=True, slots=True)
class _Run:
    """What all archives of one download share."""

    output_dir: Path
    base_url: str
    keep_archives: bool
    transfer: Transfer
    progress: ByteProgress
    moving: threading.Lock = field(default_factory=threading.Lock)

    def install(self, archive: Archive) -> None:
        """Fetch, unpack and move one archive into its machine's folder."""
        try:
            self._install(archive)
        except WrongContentError as error:
            logger.warning("%s Downloading it once more.", error)
            self._install(archive)

    def _install(self, archive: Archive) -> None:
        path = self.output_dir / "archives" / str(archive.record_id) / archive.file_name
        fetch(
            f"{self.base_url}{archive.url_path}",
            path,
            size=archive.size,
            md5=archive.md5,
            transfer=self.transfer,
            progress=self.progress,
        )
        unpacked = path.with_name(f"{path.name}.unpacked.part")
        shutil.rmtree(unpacked, ignore_errors=True)  # of a run that was killed
        try:
            place = partial(_below_machine, archive)
            files = unpack(path, unpacked, place=place, transfer=self.transfer)
        except zipfile.BadZipFile as error:
            if archive.md5 is not None:
                raise DownloadError(
                    f"{archive.file_name} is a damaged zip ({error}), and as it was published."
                ) from error
            self.progress.add(-path.stat().st_size)
            path.unlink()
            raise WrongContentError(
                f"{archive.file_name} is a damaged zip ({error}); the download was deleted."
            ) from error
        if not files:
            raise DownloadError(f"{archive.file_name} holds no file.")
        try:
            with self.moving:  # train and test of a machine may arrive at the same time
                _merge(unpacked, archive.machine_folder(self.output_dir), files)
        finally:
            shutil.rmtree(unpacked, ignore_errors=True)
        _write_marker(archive, self.output_dir, files)
        if not self.keep_archives:
            path.unlink()


def _below_machine(archive: Archive, path: PurePosixPath) -> PurePosixPath | None:
    """Return a member's path within its machine's folder, or None for an operating system's junk.

    A zip holds the folder `<machine>/`, or else that folder's content.
    """
    if path.parts[0] == "__MACOSX" or path.name == ".DS_Store":
        return None
    *folders, _ = path.parts
    if archive.machine_type in folders:
        return PurePosixPath(*path.parts[folders.index(archive.machine_type) + 1 :])
    if folders and folders[0] not in _SPLIT_FOLDERS:
        raise DownloadError(
            f"{archive.file_name} holds {str(path)!r}, but its files should be in "
            f"'{archive.machine_type}/'."
        )
    return path


def _merge(unpacked: Path, folder: Path, files: Sequence[Path]) -> None:
    """Move an unpacked archive into its machine's folder, beside what is there."""
    for file in files:  # all of them first, so that a refusal has moved nothing
        present = folder / file
        if present.exists() and not filecmp.cmp(unpacked / file, present, shallow=False):
            raise DownloadError(
                f"{present} is there already and differs. Move {folder} away, or choose another "
                "--output_dir."
            )
    _move(unpacked, folder)


def _move(source: Path, target: Path) -> None:
    """Rename the largest trees that are not there yet, so that a folder appears whole."""
    if source.is_dir() and target.is_dir():
        for entry in sorted(source.iterdir()):
            _move(entry, target / entry.name)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        source.replace(target)


def _write_marker(archive: Archive, output_dir: Path, files: Sequence[Path]) -> None:
    marker = archive.marker(output_dir)
    content = {
        "year": archive.year,
        "record_id": archive.record_id,
        "md5": archive.md5,  # null: verified by the zip's CRCs alone
        "entries": sorted({file.parts[0] for file in files}),
    }
    unfinished = marker.with_name(f"{marker.name}.part")
    unfinished.write_text(json.dumps(content) + "\n", encoding="utf-8")
    unfinished.replace(marker)


def _is_complete(archive: Archive, output_dir: Path) -> bool:
    """Return whether the archive was unpacked, and what it brought is still there."""
    marker = archive.marker(output_dir)
    if not marker.is_file():
        return False
    content = json.loads(marker.read_text(encoding="utf-8"))
    return all((marker.parent / entry).exists() for entry in content["entries"])


def _refuse_other_years(output_dir: Path, year: int) -> None:
    for marker in sorted(output_dir.glob("*_data/raw/*/.*.completed")):
        present = json.loads(marker.read_text(encoding="utf-8"))["year"]
        if present != year:
            raise ValueError(
                f"{output_dir} holds recordings of {present}, and the same machine names mean "
                f"others in {year}. Choose another --output_dir."
            )


def _with_published_checksums(
    archives: Sequence[Archive], base_url: str, transfer: Transfer
) -> list[Archive]:
    """Ask the records for sizes and MD5s that this file does not know."""
    published = {
        record_id: _read_record(record_id, base_url, transfer)
        for record_id in {archive.record_id for archive in archives if archive.md5 is None}
    }
    completed = []
    for archive in archives:
        if archive.md5 is None:
            size, md5 = published[archive.record_id].get(archive.file_name, (None, None))
            if md5 is None:
                logger.warning(
                    "%s is unverified beyond its zip CRCs: no MD5 of it was found.",
                    archive.file_name,
                )
            completed.append(replace(archive, size=size, md5=md5))
        else:
            completed.append(archive)
    return completed


def _read_record(record_id: int, base_url: str, transfer: Transfer) -> dict[str, tuple[int, str]]:
    """Return {file name: (bytes, MD5)} as Zenodo's API tells them; empty where it does not."""
    url = f"{base_url}/api/records/{record_id}"
    try:
        response = requests.get(url, timeout=transfer.timeout_seconds)
        response.raise_for_status()
        return {
            entry["key"]: (int(entry["size"]), entry["checksum"].removeprefix("md5:"))
            for entry in response.json()["files"]
            if entry["checksum"].startswith("md5:")
        }
    except (requests.RequestException, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s could not be read (%s).", url, error)
        return {}


def _remove_empty(folder: Path) -> None:
    """Remove a folder and those in it as far as they are empty."""
    if folder.is_dir():
        for inner in folder.iterdir():
            if inner.is_dir():
                _remove_empty(inner)
        if not any(folder.iterdir()):
            folder.rmdir()


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, download, and end with 0 only if every archive is in place."""
    parser = argparse.ArgumentParser(
        prog="python -m data_scripts.dcase",
        description="Fetch, verify and unpack the recordings of DCASE Task 2.",
    )
    parser.add_argument("--year", type=int, default=2026, choices=sorted(EDITIONS))
    parser.add_argument("--subset", default="dev", choices=list(SUBSETS))
    parser.add_argument("--output_dir", type=Path, required=True, help="a folder for this year")
    parser.add_argument("--machine_types", nargs="+", metavar="MACHINE", help="all unless named")
    parser.add_argument("--num_workers", type=int, default=4, help="archives at the same time")
    parser.add_argument("--keep_archives", action="store_true", help="leave the zips there")
    parser.add_argument("--base_url", default=BASE_URL, help="where the records are")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        with logging_redirect_tqdm():
            folders = download_dcase(**vars(args))
    except KeyboardInterrupt:
        logger.error("Interrupted. Run the same command again to go on from here.")
        sys.exit(130)
    except (ValueError, DownloadError, OSError) as error:
        sys.exit(str(error))
    logger.info("Complete: %s", ", ".join(str(folder) for folder in folders))


if __name__ == "__main__":
    main()
