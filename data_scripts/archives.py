"""Large archives over HTTP: downloads that resume and are verified, and zips that cannot do harm.

Nothing here knows what is inside an archive; `dcase.py` does.
"""

import errno
import hashlib
import logging
import lzma
import re
import shutil
import stat
import threading
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import requests
from tqdm import tqdm

logger = logging.getLogger(__name__)

_CHUNK = 1 << 16  # bytes; what a broken connection can lose of what had already arrived
_LATER = frozenset({408, 425, 429, 500, 502, 503, 504})  # HTTP statuses that may pass
_LONGEST_PAUSE_SECONDS = 60.0

# Bounds no honest archive comes near: recordings shrink to a half at best.
MAX_RATIO = 20
MAX_RATIO_FROM_BYTES = 64 << 20  # smaller archives may unpack to this much in any case
MAX_MEMBERS = 200_000


class DownloadError(RuntimeError):
    """An archive could not be fetched or unpacked; the message says why and what to do."""


class WrongContentError(DownloadError):
    """What arrived is not what was published; it has been deleted."""


class UnsafeArchiveError(DownloadError):
    """A zip holds something that could do harm; nothing of it has been unpacked."""


class StoppedError(DownloadError):
    """The user interrupted the run."""


class _BrokenOffError(Exception):
    """An attempt that ended early and may be repeated, after `pause_seconds` at least."""

    def __init__(self, reason: str, pause_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.pause_seconds = pause_seconds


class ByteProgress:
    """A progress bar over the bytes of all archives, shared by threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sizes: dict[str, int] = {}
        # disable=None: no bar where nobody watches (not a terminal).
        self._bar = tqdm(total=0, unit="B", unit_scale=True, unit_divisor=1024, disable=None)

    def expect(self, name: str, num_bytes: int) -> None:
        """Say how large an archive is; saying it again changes nothing."""
        with self._lock:
            self._sizes[name] = num_bytes
            self._bar.total = sum(self._sizes.values())

    def add(self, num_bytes: int) -> None:
        """Count bytes that are there now; fewer than 0 where some were thrown away."""
        with self._lock:
            self._bar.update(num_bytes)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()


def wait_longer_each_time(attempt: int) -> float:
    """Return the seconds to wait after the attempt-th failure in a row: 1, 2, 4, ..."""
    return min(2.0 ** (attempt - 1), _LONGEST_PAUSE_SECONDS)


@dataclass(frozen=True, slots=True)
class Transfer:
    """How to talk to a server.

    Attributes:
        timeout_seconds: For the connection, and for the next byte: a server that sends nothing for
            this long counts as broken off.
        max_attempts: Attempts in a row that may bring no new byte.
        backoff: Attempts in a row without a new byte, at least 1 -> seconds to wait.
        stop: Set it to end every transfer at its next chunk.
    """

    timeout_seconds: tuple[float, float] = (15.0, 30.0)
    max_attempts: int = 6
    backoff: Callable[[int], float] = wait_longer_each_time
    stop: threading.Event = field(default_factory=threading.Event)

    def check(self) -> None:
        """Raise StoppedError once the user has interrupted the run."""
        if self.stop.is_set():
            raise StoppedError("Interrupted. Run the same command again to go on from here.")

    def pause(self, seconds: float) -> None:
        """Wait, unless interrupted."""
        self.stop.wait(seconds)
        self.check()


def fetch(
    url: str,
    path: Path,
    *,
    size: int | None,
    md5: str | None,
    transfer: Transfer,
    progress: ByteProgress,
) -> None:
    """Download `url` to `path`, or go on with the `.part` beside it from where it ended.

    `path` itself appears only when it is whole and, as far as size and MD5 are known, right. A file
    already there is checked and kept.

    Args:
        url: What to download.
        path: Where to; its folder is made.
        size: The published length in bytes, or None.
        md5: The published MD5 in hexadecimal, or None.
        transfer: Timeouts and retries.
        progress: Told of every byte.

    Raises:
        WrongContentError: Size or MD5 is not the published one; the bytes have been deleted.
        DownloadError: The server refuses, keeps breaking off, or the disk is full. The `.part` is
            kept.
        StoppedError: Interrupted; the `.part` is kept.
    """
    part = path.with_name(f"{path.name}.part")
    if size is not None:
        progress.expect(path.name, size)
    if path.exists():
        progress.add(_length(path))
        problem = _content_problem(path, size, md5)
        if problem is None:
            return
        logger.warning("%s %s; it is downloaded again.", path, problem)
        _discard(path, progress)
    path.parent.mkdir(parents=True, exist_ok=True)
    progress.add(_length(part))
    try:
        _receive_all(url, part, size, transfer, progress)
    except requests.RequestException as error:
        raise DownloadError(f"{path.name} could not be downloaded: {error}.") from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise DownloadError(
            f"The disk of {path.parent} is full, {_length(part)} bytes into {path.name}. Make room "
            "and run the same command again: it goes on from there."
        ) from error
    problem = _content_problem(part, size, md5)
    if problem:
        _discard(part, progress)
        raise WrongContentError(f"{path.name} {problem}; the download was deleted.")
    part.replace(path)


def _receive_all(
    url: str, part: Path, size: int | None, transfer: Transfer, progress: ByteProgress
) -> None:
    """Fill `part`, attempt after attempt, as long as every few of them bring something new."""
    failures, longest = 0, _length(part)
    while True:
        transfer.check()
        pause_seconds = 0.0
        try:
            _receive(url, part, size, transfer, progress)
        except _BrokenOffError as error:
            reason, pause_seconds = str(error), error.pause_seconds
        except (
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
        ) as error:
            reason = str(error)
        else:
            return
        failures = 0 if _length(part) > longest else failures + 1
        longest = max(longest, _length(part))
        if failures >= transfer.max_attempts:
            raise DownloadError(
                f"{url} broke off {failures} times without a new byte, {_length(part)} bytes in "
                f"({reason}). Run the same command again to go on from there."
            )
        logger.info("%s broke off at byte %d (%s).", part.stem, _length(part), reason)
        transfer.pause(max(transfer.backoff(max(failures, 1)), pause_seconds))


def _receive(
    url: str, part: Path, size: int | None, transfer: Transfer, progress: ByteProgress
) -> None:
    """Make one request, and append what it brings."""
    offset = _length(part)
    if size is not None and offset >= size:
        return  # complete, or too long: the content check decides
    # identity: a length and a range count the bytes of the file, not of a compressed copy.
    headers = {"Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    with requests.get(
        url, headers=headers, stream=True, timeout=transfer.timeout_seconds
    ) as response:
        first, total = _announced(response, offset)
        if response.status_code == 416 and total == offset:
            return  # a whole file has no byte left to ask for
        if response.status_code == 416 or first not in (0, offset):
            _discard(part, progress)
            raise _BrokenOffError(f"no bytes from {offset} on were offered; starting again")
        if size is not None and total is not None and total != size:
            raise DownloadError(
                f"{url} offers {total} bytes, but {size} were published. Is it the right address?"
            )
        if total is not None:
            progress.expect(part.stem, total)
        if first == 0:
            _discard(part, progress)  # the server ignored the range and sends all of it
        with part.open("ab") as file:
            for chunk in response.iter_content(_CHUNK):
                file.write(chunk)
                progress.add(len(chunk))
                transfer.check()
                if size is not None and file.tell() > size:
                    return  # more than was published: the content check decides
    if total is not None and _length(part) < total:
        raise _BrokenOffError("the connection was closed early")


def _announced(response: requests.Response, offset: int) -> tuple[int | None, int | None]:
    """Return where the body begins in the file and how long the file is, None where unsaid.

    Raises:
        DownloadError: The server refuses, for good.
        _BrokenOffError: The server refuses, for now.
    """
    status = response.status_code
    said = re.fullmatch(
        r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", response.headers.get("Content-Range", "")
    )
    total = int(said[2]) if said and said[2] != "*" else None
    if status == 416 and offset:
        return None, total
    if status == 206:
        return (int(said[1]) if said and said[1] else None), total
    if status == 200:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdigit() else None
    answer = f"{response.url} answered {status} {response.reason}"
    if status in _LATER:
        wait = response.headers.get("Retry-After", "")
        seconds = float(wait) if wait.isdigit() else 0.0
        raise _BrokenOffError(answer, min(seconds, _LONGEST_PAUSE_SECONDS))
    raise DownloadError(f"{answer}.")


def _content_problem(path: Path, size: int | None, md5: str | None) -> str | None:
    """Return how a file differs from what was published, or None."""
    length = _length(path)
    if size is not None and length != size:
        return f"has {length} bytes, but {size} were published"
    if md5 is not None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
        if found != md5:
            return f"has the MD5 {found}, but {md5} was published"
    return None


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _discard(part: Path, progress: ByteProgress) -> None:
    progress.add(-_length(part))
    part.unlink(missing_ok=True)


def unpack(
    archive: Path,
    folder: Path,
    *,
    place: Callable[[PurePosixPath], PurePosixPath | None],
    transfer: Transfer,
) -> list[Path]:
    """Unpack a zip into a folder that does not exist yet, after looking at every member's name.

    Args:
        archive: A zip.
        folder: Where to; removed again if anything goes wrong.
        place: A member's path in the zip -> its path below `folder`, or None to leave it out.
        transfer: Asked for interruptions.

    Returns:
        The files, relative to `folder`.

    Raises:
        UnsafeArchiveError: A member would land outside `folder`, is a link or a device, or the
            whole is far larger than recordings can be.
        zipfile.BadZipFile: The zip is damaged.
        DownloadError: The disk is full, or the zip needs a password.
        StoppedError: Interrupted.
    """
    unpacked: list[Path] | None = None
    try:
        with zipfile.ZipFile(archive) as zipped:
            targets = _checked_targets(archive, zipped, place)
            folder.mkdir(parents=True)
            for member, target in targets:
                _unpack_member(zipped, member, folder / target, transfer)
            unpacked = [Path(target) for _, target in targets]
    except (zlib.error, lzma.LZMAError, EOFError, NotImplementedError) as error:
        raise zipfile.BadZipFile(str(error)) from error
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise DownloadError(
            f"The disk of {folder.parent} is full while {archive.name} is unpacked. Make room and "
            "run the same command again: the archive itself is kept."
        ) from error
    finally:
        if unpacked is None:
            shutil.rmtree(folder, ignore_errors=True)
    return unpacked


def _checked_targets(
    archive: Path,
    zipped: zipfile.ZipFile,
    place: Callable[[PurePosixPath], PurePosixPath | None],
) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """Return the files to unpack and where to, or raise before the first one is written."""
    members = zipped.infolist()
    if len(members) > MAX_MEMBERS:
        raise UnsafeArchiveError(f"{archive.name} has {len(members)} members; refused.")
    unpacked = sum(member.file_size for member in members)
    bound = max(MAX_RATIO * archive.stat().st_size, MAX_RATIO_FROM_BYTES)
    if unpacked > bound:
        raise UnsafeArchiveError(
            f"{archive.name} would unpack to {unpacked} bytes, more than {bound}; refused."
        )
    targets: dict[PurePosixPath, zipfile.ZipInfo] = {}
    for member in members:
        path = _safe_path(archive, member)
        if member.is_dir():
            continue
        target = place(path)
        if target is None:
            continue
        if target in targets:
            raise UnsafeArchiveError(f"{archive.name} holds {member.filename!r} twice; refused.")
        targets[target] = member
    return [(member, target) for target, member in targets.items()]


def _safe_path(archive: Path, member: zipfile.ZipInfo) -> PurePosixPath:
    """Return a member's path, or raise if it could lead anywhere but below the folder."""
    name = member.filename.replace("\\", "/")
    path = PurePosixPath(name)
    kind = stat.S_IFMT(member.external_attr >> 16)
    if path.is_absolute() or ".." in path.parts or ":" in name or not path.parts:
        problem = "is not a path below the archive's own folder"
    elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        problem = "is a link or a device, not a file"
    elif member.flag_bits & 0x1:
        problem = "is encrypted"
    else:
        return path
    raise UnsafeArchiveError(f"{archive.name}: {member.filename!r} {problem}; refused.")


def _unpack_member(
    zipped: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, transfer: Transfer
) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    # zipfile reads no further than the size it has checked, and compares the CRC at the end.
    with zipped.open(member) as source, target.open("xb") as file:
        while chunk := source.read(1 << 20):
            file.write(chunk)
            transfer.check()
