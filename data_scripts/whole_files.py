"""Files that are written whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, which becomes it when the block ends without an error.

    After an error `path` is what it was before, and the temporary file is gone. Its name is always
    the same, so that one of a process that was killed is written over.
    """
    partial = path.with_name(f".partial_{path.name}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
