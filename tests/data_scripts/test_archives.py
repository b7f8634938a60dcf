"""Laws of unpacking: a zip, however it was made, changes nothing outside its folder."""

import errno
import shutil
import stat
import zipfile
from pathlib import Path, PurePosixPath

import pytest

from data_scripts import archives
from data_scripts.archives import (
    DownloadError,
    StoppedError,
    Transfer,
    UnsafeArchiveError,
    unpack,
    wait_longer_each_time,
)


def as_named(path: PurePosixPath) -> PurePosixPath:
    return path


def write_zip(path: Path, members: dict[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in members.items():
            zipped.writestr(name, content)
    return path


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_zip_unpacks_to_its_own_bytes(tmp_path: Path) -> None:
    members = {"fan/train/a.wav": b"\x00\x01" * 5000, "fan/attributes_00.csv": b"file_name\n"}
    archive = write_zip(tmp_path / "fan.zip", {"fan/": b"", "fan/train/": b"", **members})
    files = unpack(archive, tmp_path / "out", place=as_named, transfer=Transfer())
    assert {file.as_posix() for file in files} == set(members) == tree(tmp_path / "out")
    for name, content in members.items():
        assert (tmp_path / "out" / name).read_bytes() == content


def link(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    member.create_system = 3
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member


def device(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    member.create_system = 3
    member.external_attr = (stat.S_IFIFO | 0o666) << 16
    return member


@pytest.mark.parametrize(
    "name",
    [
        "../evil.wav",
        "fan/../../evil.wav",
        "/evil.wav",
        "//evil.wav",
        "C:/evil.wav",
        "C:evil.wav",
        "fan/train:stream",
        "..\\evil.wav",
        "\\evil.wav",
        "fan\\..\\..\\evil.wav",
        link("fan/link"),
        link("fan/link/"),
        device("fan/pipe"),
    ],
    ids=lambda name: getattr(name, "filename", name),
)
def test_a_member_that_could_leave_the_folder_is_refused_before_anything_is_written(
    tmp_path: Path, name: str | zipfile.ZipInfo
) -> None:
    folder = tmp_path / "deep" / "out"
    archive = write_zip(tmp_path / "evil.zip", {"fan/good.wav": b"good", name: b"/etc/passwd"})
    with pytest.raises(UnsafeArchiveError, match=r"evil\.zip.*refused"):
        unpack(archive, folder, place=as_named, transfer=Transfer())
    assert tree(tmp_path) == {"evil.zip"}
    assert not folder.exists()


def test_an_archive_that_unpacks_to_far_more_than_it_is_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MAX_RATIO_FROM_BYTES", 1 << 20)
    bomb = write_zip(tmp_path / "bomb.zip", {"fan/zeros.wav": bytes(archives.MAX_RATIO_FROM_BYTES)})
    assert bomb.stat().st_size < archives.MAX_RATIO_FROM_BYTES / archives.MAX_RATIO
    assert unpack(bomb, tmp_path / "at_the_bound", place=as_named, transfer=Transfer())
    shutil.rmtree(tmp_path / "at_the_bound")
    with zipfile.ZipFile(bomb, "a") as zipped:
        zipped.writestr("fan/one_more.wav", b"\x00")  # one byte over the bound
    with pytest.raises(UnsafeArchiveError, match=r"would unpack to 1048577 bytes.*refused"):
        unpack(bomb, tmp_path / "out", place=as_named, transfer=Transfer())
    assert tree(tmp_path) == {"bomb.zip"}


def test_a_member_that_lies_about_its_size_writes_no_more_than_it_said(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "liar.zip", {"fan/a.wav": bytes(5_000_000)})
    content = archive.read_bytes()
    claimed = content.replace((5_000_000).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    assert claimed.count((10).to_bytes(4, "little")) >= 2  # local and central header
    archive.write_bytes(claimed)
    with pytest.raises(zipfile.BadZipFile):
        unpack(archive, tmp_path / "out", place=as_named, transfer=Transfer())
    assert tree(tmp_path) == {"liar.zip"}


def test_a_name_that_comes_twice_is_refused(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "twice.zip", {"fan/a.wav": b"1"})
    with (
        zipfile.ZipFile(archive, "a") as zipped,
        pytest.warns(UserWarning, match="Duplicate name"),
    ):
        zipped.writestr("fan/a.wav", b"2")
    with pytest.raises(UnsafeArchiveError, match="twice"):
        unpack(archive, tmp_path / "out", place=as_named, transfer=Transfer())


def test_too_many_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBERS", 2)
    archive = write_zip(tmp_path / "many.zip", {f"fan/{i}.wav": b"x" for i in range(3)})
    with pytest.raises(UnsafeArchiveError, match="3 members"):
        unpack(archive, tmp_path / "out", place=as_named, transfer=Transfer())


@pytest.mark.parametrize("damage", ["truncated", "byte", "not_a_zip"])
def test_a_damaged_zip_leaves_nothing(tmp_path: Path, damage: str) -> None:
    members = {f"fan/{i}.wav": bytes(range(256)) * 50 * (i + 1) for i in range(3)}
    archive = write_zip(tmp_path / "fan.zip", members)
    content = bytearray(archive.read_bytes())
    if damage == "byte":
        with zipfile.ZipFile(archive) as zipped:
            start = zipped.infolist()[-1].header_offset
        content[start + 60] ^= 0xFF  # within the last member's compressed data
    archive.write_bytes({"truncated": content[:-30], "not_a_zip": b"<html>"}.get(damage, content))
    with pytest.raises(zipfile.BadZipFile):
        unpack(archive, tmp_path / "out", place=as_named, transfer=Transfer())
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_the_archive_and_nothing_half_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = write_zip(tmp_path / "fan.zip", {"fan/a.wav": b"a" * 1000, "fan/b.wav": b"b" * 1000})
    unpack_member = archives._unpack_member

    def full_at_the_second(zipped, member, target, transfer) -> None:
        if member.filename == "fan/b.wav":
            raise OSError(errno.ENOSPC, "No space left on device")
        unpack_member(zipped, member, target, transfer)

    monkeypatch.setattr(archives, "_unpack_member", full_at_the_second)
    with pytest.raises(DownloadError, match=r"disk of .* is full.*Make room"):
        unpack(archive, tmp_path / "out", place=as_named, transfer=Transfer())
    assert tree(tmp_path) == {"fan.zip"}


def test_an_interrupted_unpacking_leaves_nothing(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "fan.zip", {"fan/a.wav": b"a" * 1000})
    transfer = Transfer()
    transfer.stop.set()
    with pytest.raises(StoppedError):
        unpack(archive, tmp_path / "out", place=as_named, transfer=transfer)
    assert not (tmp_path / "out").exists()


def test_pauses_double_up_to_a_minute() -> None:
    assert [wait_longer_each_time(n) for n in (1, 2, 3, 6, 7, 50)] == [1, 2, 4, 32, 60, 60]
