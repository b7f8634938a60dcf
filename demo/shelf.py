"""Files that a page plays or downloads: under names nobody can guess, for a while."""

import secrets
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from data_scripts.clip_files import SAMPLING_RATE


class Shelf:
    """A folder that forgets what is old, and what is too much.

    Args:
        folder: The server may hand out every file in it.
        max_seconds: Age at which an entry goes.
        max_entries: The oldest beyond these go; an entry is a sound or a folder.
    """

    def __init__(self, folder: Path, *, max_seconds: float = 3600, max_entries: int = 600) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder.resolve()
        self.max_seconds = max_seconds
        self.max_entries = max_entries
        self._lock = threading.Lock()

    def sound_url(self, waveform: NDArray[np.float32]) -> str:
        """Keep a sound (num_samples,) as 16-bit WAV and return where the page finds it."""
        self._forget()
        path = self.folder / f"{secrets.token_urlsafe(16)}.wav"
        soundfile.write(path, np.clip(waveform, -1, 1), SAMPLING_RATE, "PCM_16")
        return f"gradio_api/file={path}"

    def new_folder(self) -> Path:
        """Return a folder for files of one answer."""
        self._forget()
        path = self.folder / secrets.token_urlsafe(16)
        path.mkdir()
        return path

    def _forget(self) -> None:
        with self._lock:
            entries = sorted((entry.stat().st_mtime, entry) for entry in self.folder.iterdir())
            oldest = time.time() - self.max_seconds
            excess = len(entries) - self.max_entries + 1
            for number, (written, entry) in enumerate(entries):
                if written < oldest or number < excess:
                    if entry.is_dir():
                        shutil.rmtree(entry, ignore_errors=True)
                    else:
                        entry.unlink(missing_ok=True)
