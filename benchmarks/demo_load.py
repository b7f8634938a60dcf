"""Does the demo bear many users at once: without an error, a leak or a mixed-up answer?

Starts app.py in a process of its own. Each user has a sound of its own, whose score is known from a
request made alone; some enrol a machine of their own, under one name for all, and score that. An
answer that is not the user's own counts as mixed up.

The users speak the API's plain HTTP from one event loop: each `gradio_client.Client` has threads of
its own and a new connection for every request, so that fifty of them in a process keep a core busy
that the server needs.

It ends after ARRIVAL_SECONDS + --seconds + PATIENCE_SECONDS at the latest, whatever the server
does, and counts who was not answered.

python -m benchmarks.demo_load --users 50 --seconds 120
"""

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import soundfile
from numpy.typing import NDArray

from nearfar.arguments import parse_arguments, script
from nearfar.files import write_json

ROOT = Path(__file__).resolve().parents[1]
RATE = 16_000
CLIP_SECONDS, NORMAL_SECONDS = 10, 61
ARRIVAL_SECONDS = 240.0  # for all users, one after the other, with their enrolments
PATIENCE_SECONDS = 60.0  # for the last answers
SAME = 1e-4  # relative difference between a score alone and under load
ENROLLED = "local/my machine/00"  # one name for all, so that a mix-up shows


@dataclass(kw_only=True)
class LoadArguments:
    """Arguments of benchmarks.demo_load."""

    users: int = field(default=50, metadata={"help": "Clients at once."})
    seconds: float = field(default=120.0, metadata={"help": "How long they ask."})
    enrolling_share: float = field(default=0.2, metadata={"help": "Users with a machine."})
    pause_seconds: float = field(default=0.5, metadata={"help": "Between a user's requests."})
    model: str | None = field(default=None, metadata={"help": "As app.py takes it."})
    output: Path | None = field(default=None, metadata={"help": "JSON file of the figures."})


class AnswerError(RuntimeError):
    """The demo answered with an error."""


@dataclass
class User:
    """One client, with a session of its own.

    Attributes:
        http: Of the demo's address; all users may share one.
        clip: Its sound.
        machine: What it scores.
        session: The name of its session.
        alone: The score of its clip when nobody else asked.
        seconds: Of each request.
        errors: What went wrong.
        mixed_up: Scores that were not its own.
        waiting: Whether it still has no answer.
    """

    http: httpx.AsyncClient
    clip: Path
    machine: str
    session: str = field(default_factory=lambda: uuid.uuid4().hex)
    alone: float = 0.0
    seconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    mixed_up: list[float] = field(default_factory=list)
    waiting: bool = False

    async def ask(self, until: float, pause_seconds: float) -> None:
        """Score the clip again and again."""
        while time.monotonic() < until:
            start, self.waiting = time.monotonic(), True
            try:
                score = await self.score()
            except (AnswerError, httpx.HTTPError, ValueError) as error:
                self.errors.append(f"{type(error).__name__}: {error}")
            else:
                self.seconds.append(time.monotonic() - start)
                if abs(score - self.alone) > SAME * abs(self.alone):
                    self.mixed_up.append(score)
            self.waiting = False
            await asyncio.sleep(pause_seconds)

    async def score(self) -> float:
        """Return the score of its clip of its machine.

        Raises:
            AnswerError: The demo's, or an answer about something else.
        """
        verdict = (await self.call("score", self.machine, await self.upload(self.clip), None))[0]
        if verdict["machine"] != self.machine or verdict["recording"] != self.clip.name:
            raise AnswerError(f"Asked for {self.clip.name} of {self.machine}, got {verdict}.")
        return float(verdict["anomaly_score"])

    async def upload(self, path: Path) -> dict[str, Any]:
        """Give the server a file and return how an action is told of it."""
        answer = await self.http.post(
            "gradio_api/upload", files={"files": (path.name, path.read_bytes())}
        )
        answer.raise_for_status()
        stored = answer.json()[0]
        return {"path": stored, "orig_name": path.name, "meta": {"_type": "gradio.FileData"}}

    async def call(self, action: str, *values: object) -> Any:  # noqa: ANN401 - an action's own
        """Run an action by name in this user's session and return what it returns.

        Raises:
            AnswerError: The demo's own words.
        """
        address = f"gradio_api/call/{action}"
        body = {"data": values, "session_hash": self.session}
        asked = await self.http.post(address, json=body)
        asked.raise_for_status()
        event, told = "", []
        # Read to its end: a stream that is cut off takes the session's next request with it.
        async with self.http.stream("GET", f"{address}/{asked.json()['event_id']}") as answer:
            async for line in answer.aiter_lines():
                key, _, value = line.partition(": ")
                if key == "event":
                    event = value
                elif key == "data" and event in ("complete", "error"):
                    told.append((event, json.loads(value)))
        if not told or told[0][0] == "error":
            raise AnswerError(f"/{action}: {told[0][1] if told else 'no answer'}")
        return told[0][1]


def main() -> None:
    """Serve, ask, print."""
    args = parse_arguments(LoadArguments)
    with tempfile.TemporaryDirectory(prefix="demo_load_") as temporary:
        folder = Path(temporary)
        with served(args.model, folder / "server.log") as (url, server):
            figures = asyncio.run(load(url, server, folder, args))
    if args.output is not None:
        write_json(args.output, figures)
    print("\n".join(f"{name:<28}{value}" for name, value in figures.items()))


async def load(
    url: str, server: psutil.Process, folder: Path, args: LoadArguments
) -> dict[str, Any]:
    """Let users arrive, ask alone and then all at once; return what is to be known of it.

    Args:
        url: Of the demo.
        server: Its process.
        folder: Gets the users' sounds.
        args: How many users, how long.

    Raises:
        TimeoutError: The users did not get as far as their first answers in ARRIVAL_SECONDS.
    """
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=args.users)
    async with httpx.AsyncClient(base_url=url, timeout=None, limits=limits) as http:
        async with asyncio.timeout(ARRIVAL_SECONDS):
            users = [
                await arrive(
                    http, number, folder, enrols=number < args.enrolling_share * args.users
                )
                for number in range(args.users)
            ]
            alone = await one_after_another(users[-1])
        print(f"{len(users)} users are there", flush=True)
        memory, busy = [server.memory_info().rss], server.cpu_times()
        own, start = time.process_time(), time.monotonic()
        until = start + args.seconds
        asking = [asyncio.create_task(user.ask(until, args.pause_seconds)) for user in users]
        while time.monotonic() < until:
            await asyncio.sleep(min(5.0, args.seconds / 6))
            memory.append(server.memory_info().rss)
        await asyncio.wait(asking, timeout=PATIENCE_SECONDS)
        lasted = time.monotonic() - start
        spent = sum(server.cpu_times()[:2]) - sum(busy[:2])
        own = time.process_time() - own
        unanswered = sum(user.waiting for user in users)
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        lives = (await http.get("", timeout=PATIENCE_SECONDS)).status_code == 200
    return summary(users, alone, memory, args) | {
        "never_answered": unanswered,
        "server_lives": lives,
        "answers_per_second": round(sum(len(user.seconds) for user in users) / lasted, 2),
        "server_cores": round(spent / lasted, 2),
        "users_cores": round(own / lasted, 2),
        "load_average": round(os.getloadavg()[0], 1),
        "cores": os.cpu_count(),
    }


@contextmanager
def served(model: str | None, log: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Run app.py on a free port of loopback until the block ends."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, ROOT / "app.py", "--port", port]
    command += [] if model is None else ["--model", model]
    url = f"http://127.0.0.1:{port}/"
    with log.open("wb") as output:
        words = [str(word) for word in command]
        process = subprocess.Popen(words, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    try:
        for _ in range(240):
            if process.poll() is not None:
                raise OSError(f"app.py ended with {process.returncode}: {log.read_text()[-2000:]}")
            try:
                httpx.get(url)
                break
            except httpx.TransportError:
                time.sleep(0.5)
        yield url, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


async def arrive(http: httpx.AsyncClient, number: int, folder: Path, *, enrols: bool) -> User:
    """Return a new user, who knows the score of its own sound."""
    clip = folder / f"user_{number}.wav"
    soundfile.write(clip, sound_of(number, CLIP_SECONDS), RATE)
    user = User(http, clip, ENROLLED)
    if enrols:
        normal = folder / f"normal_{number}.wav"
        soundfile.write(normal, sound_of(number + 1000, NORMAL_SECONDS), RATE)
        await user.call("enroll", "my machine", [await user.upload(normal)])
    else:
        user.machine = (await user.call("machines"))[0][0]["machine"]
    user.alone = await user.score()
    return user


async def one_after_another(user: User, requests: int = 8) -> list[float]:
    """Return the seconds of requests that nobody else disturbs."""
    seconds = []
    for _ in range(requests):
        start = time.monotonic()
        await user.score()
        seconds.append(time.monotonic() - start)
    return seconds


def sound_of(number: int, seconds: float) -> NDArray[np.float32]:
    """Return two channels, (num_samples, 2), like no other number's."""
    rng = np.random.default_rng(number)
    t = np.arange(int(seconds * RATE)) / RATE
    tones = sum(np.sin(2 * np.pi * hertz * t) for hertz in rng.uniform(80, 4000, size=4))
    noise = rng.standard_normal((len(t), 2))
    near_far = np.stack([0.05 * tones, 0.01 * tones], axis=1) + 0.02 * noise
    return near_far.astype(np.float32)


def summary(
    users: list[User], alone: list[float], memory: list[int], args: LoadArguments
) -> dict[str, Any]:
    """Return what is to be known of a run."""
    seconds = [second for user in users for second in user.seconds]
    errors = [error for user in users for error in user.errors]
    half = len(memory) // 2
    return {
        "users": len(users),
        "users_with_own_machine": sum(user.machine == ENROLLED for user in users),
        "seconds": args.seconds,
        "answers": len(seconds),
        "errors": len(errors),
        "first_errors": errors[:3],
        "mixed_up": sum(len(user.mixed_up) for user in users),
        "alone_median_seconds": round(float(np.median(alone)), 3),
        "median_seconds": round(float(np.median(seconds or np.nan)), 3),
        "p95_seconds": round(float(np.quantile(seconds or np.nan, 0.95)), 3),
        "max_seconds": round(max(seconds, default=np.nan), 3),
        "fewest_answers_of_a_user": min(len(user.seconds) for user in users),
        "server_mib_before": memory[0] >> 20,
        "server_mib_first_half_max": max(memory[: half + 1]) >> 20,
        "server_mib_second_half_max": max(memory[half:]) >> 20,
    }


if __name__ == "__main__":
    script(main)
