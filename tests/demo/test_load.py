"""The load benchmark: users at once get their own answers, and a mix-up would be seen."""

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.demo_load import LoadArguments, load
from demo.recordings import Recording
from tests.demo.conftest import Served

pytestmark = pytest.mark.slow


def test_users_at_once_get_their_own_answers(served: Served, tmp_path: Path) -> None:
    args = LoadArguments(users=4, seconds=1.5, enrolling_share=0.5, pause_seconds=0.1)
    figures = asyncio.run(load(served.url, psutil.Process(), tmp_path, args))
    assert figures["users_with_own_machine"] == 2
    assert figures["fewest_answers_of_a_user"] >= 1
    assert figures["first_errors"] == []
    assert figures["mixed_up"] == figures["never_answered"] == 0
    assert figures["server_lives"]


def test_an_answer_about_anothers_sound_and_an_error_are_counted(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, before = served.actions.detector.judge, []

    def confused(recording: Recording, *args: Any, **kwargs: Any) -> Any:
        """Hear what came before; every eighth time fail."""
        before.append(recording)
        if len(before) > 11 and len(before) % 8 == 0:
            raise ValueError("The microphone is asleep.")
        heard = dataclasses.replace(before[-2:][0], name=recording.name)
        return judge(heard, *args, **kwargs)

    monkeypatch.setattr(served.actions.detector, "judge", confused)
    args = LoadArguments(users=2, seconds=2.5, enrolling_share=0.0, pause_seconds=0.0)
    figures = asyncio.run(load(served.url, psutil.Process(), tmp_path, args))
    assert figures["mixed_up"] > 0
    assert figures["errors"] > 0
    assert "microphone is asleep" in figures["first_errors"][0]
