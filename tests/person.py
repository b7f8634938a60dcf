"""Somebody whose name must not be uploaded, nor that of the computer."""

from pathlib import Path
from typing import NamedTuple


class Person(NamedTuple):
    """Who uses this computer, by names that occur nowhere else.

    Attributes:
        home: A folder whose path has the user's name.
        names: The user's and the computer's, in small letters.
    """

    home: Path
    names: tuple[str, str]

    def is_told_by(self, content: bytes) -> bool:
        """Return whether a file's content has one of the names."""
        return any(name.encode() in content.lower() for name in self.names)
