"""Where a training's figures are written when nothing else is installed."""

import json
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, on_main_process


class JsonLinesTracker(GeneralTracker):  # type: ignore[misc] # accelerate has no type information
    """Logs to `log.jsonl`, one JSON object per line; needs nothing installed."""

    name = "jsonl"
    requires_logging_directory = True

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / "log.jsonl"

    @property
    def tracker(self) -> Path:
        """The file."""
        return self.path

    @on_main_process  # type: ignore[untyped-decorator] # as above
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Begin the file, or go on with it, with the run's configuration."""
        self._write({"config": values})

    @on_main_process  # type: ignore[untyped-decorator] # as above
    def log(self, values: dict[str, Any], step: int | None = None, **_: object) -> None:
        """Append values of an optimiser update."""
        self._write({"step": step, **values})

    def _write(self, values: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values, default=str) + "\n")
