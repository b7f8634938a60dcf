"""Does the demo bear many users at once: without an error, a leak or a mixed-up answer?

Starts app.py in a process of its own. Each user has a sound of its own, whose score is known from a
request made alone; some enrol a machine of their own, under one name for all, and score that. An
answer that is not the user's own counts as mixed up.

python -m benchmarks.demo_load --users 50 --seconds 120
"""

import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import soundfile
from gradio_client import Client, handle_file
from numpy.typing import NDArray

from nearfar.arguments import parse_arguments, script
from nearfar.files import write_json

ROOT = Path(__file__).resolve().parents[1]
RATE = 16_000
CLIP_SECONDS, NORMAL_SECONDS = 10, 61
PATIENCE_SECONDS = 120.0  # for the last answers
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


@dataclass
class User:
    """One client.

    Attributes:
        client: With a session of its own.
        clip: Its sound.
        machine: What it scores.
        alone: The score of its clip when nobody else asked.
        seconds: Of each request.
        errors: What went wrong.
        mixed_up: Scores that were not its own.
    """

    client: Client
    clip: Path
    machine: str
    alone: float
    seconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    mixed_up: list[float] = field(default_factory=list)

    def ask(self, until: float, pause_seconds: float) -> None:
        """Score the clip again and again."""
        while time.monotonic() < until:
            start = time.monotonic()
            try:
                score = score_of(self.client, self.clip, self.machine)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is counted
                self.errors.append(f"{type(error).__name__}: {error}")
            else:
                self.seconds.append(time.monotonic() - start)
                if abs(score - self.alone) > SAME * abs(self.alone):
                    self.mixed_up.append(score)
            time.sleep(pause_seconds)


def main() -> None:
    """Serve, ask alone, ask at once, print."""
    args = parse_arguments(LoadArguments)
    with tempfile.TemporaryDirectory(prefix="demo_load_") as temporary:
        folder = Path(temporary)
        with served(args.model, folder / "server.log") as (url, server):
            users = [
                arrive(url, number, folder, enrols=number < args.enrolling_share * args.users)
                for number in range(args.users)
            ]
            print(f"{len(users)} users are there", flush=True)
            alone = sorted(one_after_another(users[-1]))
            memory = [server.memory_info().rss]
            until = time.monotonic() + args.seconds
            threads = [
                threading.Thread(target=user.ask, args=(until, args.pause_seconds), daemon=True)
                for user in users
            ]
            for thread in threads:
                thread.start()
            while time.monotonic() < until:
                time.sleep(min(5.0, args.seconds / 6))
                memory.append(server.memory_info().rss)
            for thread in threads:
                thread.join(max(0.0, until + PATIENCE_SECONDS - time.monotonic()))
            unanswered = sum(thread.is_alive() for thread in threads)
            lives = httpx.get(url).status_code == 200
            figures = summary(users, alone, memory, args)
            figures |= {"never_answered": unanswered, "server_lives": lives}
    if args.output is not None:
        write_json(args.output, figures)
    print("\n".join(f"{name:<28}{value}" for name, value in figures.items()))


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


def arrive(url: str, number: int, folder: Path, *, enrols: bool) -> User:
    """Return a new user, who knows the score of its own sound."""
    client = Client(url, verbose=False)
    clip = folder / f"user_{number}.wav"
    soundfile.write(clip, sound_of(number, CLIP_SECONDS), RATE)
    machine = client.predict(api_name="/machines")[0]["machine"]
    if enrols:
        normal = folder / f"normal_{number}.wav"
        soundfile.write(normal, sound_of(number + 1000, NORMAL_SECONDS), RATE)
        client.predict("my machine", [handle_file(normal)], api_name="/enroll")
        machine = ENROLLED
    return User(client, clip, machine, score_of(client, clip, machine))


def one_after_another(user: User, requests: int = 8) -> list[float]:
    """Return the seconds of requests that nobody else disturbs."""
    seconds = []
    for _ in range(requests):
        start = time.monotonic()
        score_of(user.client, user.clip, user.machine)
        seconds.append(time.monotonic() - start)
    return seconds


def score_of(client: Client, clip: Path, machine: str) -> float:
    """Return the score of a clip of a machine."""
    verdict: dict[str, Any] = client.predict(machine, handle_file(clip), None, api_name="/score")
    if verdict["machine"] != machine or verdict["recording"] != clip.name:
        raise ValueError(f"Asked for {clip.name} of {machine}, got {verdict}.")
    return float(verdict["anomaly_score"])


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
    seconds = np.array([second for user in users for second in user.seconds])
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
        "median_seconds": round(float(np.median(seconds)), 3),
        "p95_seconds": round(float(np.quantile(seconds, 0.95)), 3),
        "max_seconds": round(float(seconds.max()), 3),
        "server_mib_before": memory[0] >> 20,
        "server_mib_first_half_max": max(memory[: half + 1]) >> 20,
        "server_mib_second_half_max": max(memory[half:]) >> 20,
    }


if __name__ == "__main__":
    script(main)
