"""A detector's way to the Hub and back, each step in a process of its own, on a loopback Hub.

Train a small quickstart on a simulated factory, or take a run; publish it; load it in all ways
where only transformers, torch and soundfile are installed; score a wav to the score that score.py
gives; enroll a new machine and push it; load all that again without a network. Then publish the
recordings as a data set, stream them, train on the stream, and train by the data set's name as by
the folder.

python -m benchmarks.hub --output_dir runs/hub
python -m benchmarks.hub --run runs/demo --data_dir DATA --output_dir runs/hub
"""

import csv
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml
from packaging.requirements import Requirement
from safetensors.numpy import load_file

from nearfar.arguments import parse_arguments, script
from tests.loopback_hub import USER, LoopbackHub

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("transformers", "torch", "soundfile")
TOLERANCE = 1e-5  # between a wav's score here and score.py's
FACTORY = ["--machines", 2, "--source_train", 14, "--target_train", 6, "--test_per_group", 3]
FACTORY += ["--seconds", 1, "--seed", 0]
TRAINING = ["--recipe", ROOT / "recipes" / "quickstart.yaml", "--num_train_epochs", 1]
TRAINING += ["--held_out_share", 0.2, "--crop_seconds", "none", "--data_license", "cc-by-nc-4.0"]
BRIEFLY = ["--recipe", ROOT / "recipes" / "quickstart.yaml", "--max_steps", 2, "--seed", 1]
BRIEFLY += ["--held_out_share", 0.2, "--crop_seconds", "none"]
DATA_LICENSE = "cc-by-4.0"
ENROLLED = "my_pump"

# What runs where nearfar was never installed. It prints one line of JSON.
CLIENT = """
import base64, importlib.util, json, sys
job = json.loads(sys.argv[1])
sys.path.append(job["packages"])
import torch
from huggingface_hub import snapshot_download
from transformers import (
    AutoFeatureExtractor, AutoModel, AutoModelForAudioClassification, pipeline
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module

torch.set_num_threads(1)
found = {"packages": sorted(name for name in job["absent"] if name in sys.modules)}
for revision in job["revisions"]:
    remote = {"trust_remote_code": True, "revision": revision}
    pipe = pipeline("anomalous-sound-detection", model=job["repo"], device="cpu", **remote)
    verdict = pipe(job["wav"], machine=job["machine"])
    model = AutoModel.from_pretrained(job["repo"], **remote).eval()
    head = AutoModelForAudioClassification.from_pretrained(job["repo"], **remote).eval()
    extractor = AutoFeatureExtractor.from_pretrained(job["repo"], **remote)
    bank = get_class_from_dynamic_module(
        "reference_bank.ReferenceBank", job["repo"], revision=revision
    ).from_pretrained(job["repo"], revision=revision)
    recording = pipe._recording({"near": job["wav"]}, None)
    batch = extractor(
        [recording.near], [recording.far], sampling_rate=extractor.sampling_rate,
        return_tensors="pt",
    )
    batch.pop("has_far")
    strength = torch.tensor([bank.front_end_strength(job["machine"])])
    with torch.no_grad():
        embedding = model(**batch, front_end_strength=strength).embedding
        output = head(**batch, front_end_strength=strength)
    found[revision] = {
        "verdict": verdict,
        "from_embedding": bank.anomaly_score(embedding, job["machine"]).item(),
        "head_embeds_alike": torch.equal(embedding, output.embedding),
        "logits": list(output.logits.shape),
        "machines": pipe.reference_bank.machines,
        "modules": sorted({type(x).__module__.split(".")[0] for x in (pipe, model, bank)}),
    }
if job["enroll"]:
    place = snapshot_download(job["repo"], revision=job["revisions"][0])
    spec = importlib.util.spec_from_file_location("handler", place + "/handler.py")
    handler = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(handler)
    request = {
        "inputs": base64.b64encode(open(job["wav"], "rb").read()).decode(),
        "parameters": {"machine": job["machine"]},
    }
    found["answer"] = json.loads(json.dumps(handler.EndpointHandler(place)(request)))
    told = pipe.enroll(job["enroll"], job["normal"], window_seconds=0.5)
    found["enrolled"] = [told.machine, told.num_references, told.notes]
    found["unheard"] = pipe(job["wav"], machine=job["enroll"])["anomaly_score"]
    pipe.push_to_hub(job["repo"], revision="enrolled")
    pipe.reference_bank.push_to_hub(job["repo"], revision="bank-only")
print(json.dumps(found))
"""

# What reads one machine of a data set. It prints a checksum of every clip's samples.
READER = """
import hashlib, json, sys
import datasets
from data_scripts.near_far import decoded

repo, machine_type = sys.argv[1:]
streams = decoded(datasets.load_dataset(repo, machine_type, streaming=True))
print(json.dumps({
    split: {
        row["file_name"]: [
            None if row[microphone] is None else hashlib.sha256(row[microphone]).hexdigest()
            for microphone in ("near", "far")
        ]
        for row in stream
    }
    for split, stream in streams.items()
}))
"""


@dataclass(kw_only=True)
class HubArguments:
    """Arguments of benchmarks.hub."""

    output_dir: Path = field(metadata={"help": "For what is trained and scored, and for caches."})
    run: Path | None = field(default=None, metadata={"help": "A run folder; None trains one."})
    data_dir: Path | None = field(
        default=None,
        metadata={"help": "Recordings that go with run; the Hub keeps them in memory."},
    )


def main() -> None:
    """Go the whole way, print what each step took, and fail where anything differs."""
    args = parse_arguments(HubArguments)
    if (args.run is None) != (args.data_dir is None):
        raise ValueError("Give --run with --data_dir, the recordings to score, or neither.")
    folder = args.output_dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with LoopbackHub() as hub:
        steps = Steps(hub, folder)
        lines = round_trip(steps, args.run, args.data_dir)
        hub.check()
    print("\n".join(lines))


class Steps:
    """Runs the steps, each in a process of its own.

    Args:
        hub: What they talk to.
        folder: For caches and the environment of the client.
    """

    def __init__(self, hub: LoopbackHub, folder: Path) -> None:
        self.hub = hub
        self.home = folder / "hf_home"
        self.packages = minimal_packages(folder / "packages")
        self.lines: list[str] = []

    def script(self, title: str, command: Sequence[object]) -> str:
        """Run one of the project's commands, and return what it printed."""
        own = {"HF_DATASETS_CACHE": str(self.home / "datasets")}
        words = [sys.executable, *map(str, command)]
        return self.process(title, words, os.environ | self.hub.environment(self.home) | own, ROOT)

    def client(self, title: str, job: Mapping[str, Any], *, offline: bool = False) -> Any:  # noqa: ANN401
        """Run CLIENT where only transformers, torch and soundfile are; return what it found."""
        told = dict(job) | {"packages": str(self.packages), "absent": ["nearfar", "datasets"]}
        variables = {
            name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ
        }
        variables |= self.hub.environment(self.home) | {"HOME": str(self.home)}
        variables["HF_HUB_OFFLINE"] = str(int(offline))
        words = [sys.executable, "-I", "-S", "-c", CLIENT, json.dumps(told)]
        before = len(self.hub.requests)
        output = self.process(title, words, variables, self.home)
        if offline and len(self.hub.requests) > before:
            raise ValueError(f"{title}: the Hub was asked {self.hub.requests[before:]}.")
        return json.loads(output.splitlines()[-1])

    def process(
        self, title: str, words: Sequence[str], variables: Mapping[str, str], place: Path
    ) -> str:
        """Run a command, or raise ValueError with what it said."""
        start, asked = time.monotonic(), len(self.hub.requests)
        self.home.mkdir(exist_ok=True)
        done = subprocess.run(
            words, cwd=place, env=dict(variables), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise ValueError(f"{title} failed: {done.stderr[-3_000:]}")
        seconds, asked = time.monotonic() - start, len(self.hub.requests) - asked
        self.lines.append(f"{title:<58}{seconds:6.1f} s{asked:6d} requests")
        return done.stdout


def round_trip(steps: Steps, run: Path | None, data: Path | None) -> list[str]:
    """Publish, load, score, enroll, load again, publish data; return the lines of the report."""
    folder, repo = steps.home.parent, f"{USER}/detector"
    if run is None or data is None:
        run, data = folder / "run", folder / "data"
        command = ["-m", "data_scripts.factory", "--output_dir", data, *FACTORY]
        steps.script("simulate a factory", command)
        command = ["train.py", *TRAINING, "--data_dir", data, "--output_dir", run]
        command += ["--push_to_hub", "--hub_model_id", repo, "--hub_private_repo"]
        steps.script("train a quickstart and push it as private", command)
    scores = folder / "scores"
    command = ["score.py", "--model", run, "--data_dir", data, "--output_dir", scores]
    steps.script("score its test clips", [*command, "--num_resamples", 0])
    command = ["-m", "nearfar.hub", "push", run, repo, "--private", "--tag", "v1"]
    steps.script(
        "push again, with the scores in the card, as tag v1", [*command, "--scores", scores]
    )

    machine, wav, due = scored_clip(scores, data)
    job = {"repo": repo, "machine": machine, "wav": str(wav), "enroll": None}
    normal = sorted(str(path) for path in wav.parents[1].glob("train/*.wav"))
    found = steps.client(
        "load in all ways, score a wav, enroll a machine, push it",
        job | {"revisions": ["v1"], "enroll": ENROLLED, "normal": normal},
    )
    later = steps.client("load what was pushed", job | {"revisions": ["v1", "enrolled"]})
    offline = steps.client(
        "load both without a network", job | {"revisions": ["v1", "enrolled"]}, offline=True
    )
    card = steps.hub.repository("models", repo).files("enrolled")["README.md"].content.decode()
    check(found, later, offline, card, machine=machine, due=due)
    told = data_round_trip(steps, data, wav, year=recipe_of(run)["year"])
    score = found["v1"]["verdict"]["anomaly_score"]
    return [
        *steps.lines,
        f"{wav.name} of {machine}: {score:.7f} from the Hub, {due:.7f} by score.py",
        f"enrolled {found['enrolled'][0]}: {found['enrolled'][1]} windows, "
        f"{'; '.join(found['enrolled'][2]) or 'nothing to note'}",
        *told,
    ]


def data_round_trip(steps: Steps, data: Path, wav: Path, *, year: int) -> list[str]:
    """Publish recordings, stream them, train by their name; return the lines of the report.

    Args:
        steps: Run it.
        data: The recordings.
        wav: One of them, whose machine is streamed.
        year: Of the recordings.
    """
    folder, repo = steps.home.parent, f"{USER}/machines"
    command = ["-m", "data_scripts.publish", "--data_dir", data, "--output_dir", folder / "parquet"]
    command += ["--year", year, "--license", DATA_LICENSE, "--repo_id", repo]
    steps.script("publish the recordings as a data set", command)
    machine = wav.parents[1]
    title = f"stream {machine.name} by load_dataset"
    streamed = json.loads(steps.script(title, ["-c", READER, repo, machine.name]).splitlines()[-1])
    for split, clips in streamed.items():
        due = {path.name: checksums(path) for path in machine.glob(f"{split}/*.wav")}
        if clips != due:
            raise ValueError(f"{repo} gave other clips of {split}: {clips}, due {due}.")
    counts = ", ".join(f"{len(clips)} {split}" for split, clips in streamed.items())
    lines = [f"streamed {machine.name}: {counts} clips, their samples those of the wav files"]
    options = [*BRIEFLY, "--year", year]
    sources = {"the Hub": repo, "the published folder": folder / "parquet"}
    before = copies(steps.home)
    told = trained_alike(steps, "stream", sources, [*options, "--streaming"])
    if new := copies(steps.home) - before:
        raise ValueError(f"Training on a stream left copies of the recordings: {new}.")
    lines.append(f"trained on a stream of {repo}, of which nothing stays on disk, and {told}")
    told = trained_alike(steps, "train", {"the Hub": repo, "the folder": data}, options)
    return [*lines, f"trained from {repo} and {told}"]


def copies(home: Path) -> set[Path]:
    """Return the files of recordings in the caches of a home."""
    return {path for path in home.rglob("*") if path.suffix in (".parquet", ".arrow")}


def trained_alike(
    steps: Steps, title: str, sources: Mapping[str, Path | str], options: Sequence[object]
) -> str:
    """Train from two sources of the same clips; return what was the same, or raise ValueError.

    Args:
        steps: Run it.
        title: Of the steps and of the run folders.
        sources: How each is called, and where it is.
        options: Of train.py.
    """
    runs = []
    for name, source in sources.items():
        runs.append(steps.home.parent / f"{title}_{name.split()[-1].lower()}")
        command = ["train.py", *options, "--data_dir", source, "--output_dir", runs[-1]]
        steps.script(f"{title} from {name}: two updates", command)
    sizes = []
    for file in ("model.safetensors", "reference_bank.safetensors"):
        ours, due = (load_file(run / file) for run in runs)
        if ours.keys() != due.keys() or any((ours[key] != due[key]).any() for key in due):
            raise ValueError(f"{file} differs between {runs[0]} and {runs[1]}.")
        sizes.append(f"{len(due)} tensors of {file}")
    log = (runs[0] / "trainer_state" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [entry["loss"] for entry in map(json.loads, log) if "loss" in entry]
    return f"from {[*sources][-1]}: loss {losses[-1]:.4f}, equal in {' and '.join(sizes)}"


def checksums(path: Path) -> list[str | None]:
    """Return the checksum of near and of far, None where a recording has no far."""
    samples, _ = soundfile.read(path, dtype="float32", always_2d=True)
    channels = [hashlib.sha256(np.ascontiguousarray(x)).hexdigest() for x in samples.T]
    return [*channels, None][:2]


def recipe_of(run: Path) -> dict[str, Any]:
    """Return the recipe of a run folder."""
    recipe: dict[str, Any] = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    return recipe


def check(
    found: Mapping[str, Any],
    later: Mapping[str, Any],
    offline: Mapping[str, Any],
    card: str,
    *,
    machine: str,
    due: float,
) -> None:
    """Raise ValueError where anything differs from what it has to be."""
    local = f"local/{ENROLLED}/00"
    laws = {
        "only what was allowed was imported": found["packages"] == [],
        "the code is the checkpoint's": found["v1"]["modules"] == ["transformers_modules"],
        "the wav scores as by score.py": abs(found["v1"]["verdict"]["anomaly_score"] - due)
        <= TOLERANCE,
        "embedding and bank give the pipeline's score": abs(found["v1"]["from_embedding"] - due)
        <= TOLERANCE,
        "the head embeds as the base": found["v1"]["head_embeds_alike"],
        "it gives a verdict": isinstance(found["v1"]["verdict"]["anomalous"], bool),
        "the endpoint answers alike": found["answer"] == found["v1"]["verdict"],
        "v1 stayed as it was": later["v1"] == found["v1"],
        "the enrolled machine arrived": local in later["enrolled"]["machines"],
        "its threshold is in the card": f"| {local} |" in card,
        "the others stayed": set(later["v1"]["machines"]) < set(later["enrolled"]["machines"]),
        "they score as before": later["enrolled"]["verdict"] == found["v1"]["verdict"],
        "offline is as online": offline == later,
        "the machine is known": machine in found["v1"]["machines"],
    }
    if broken := [law for law, holds in laws.items() if not holds]:
        raise ValueError(f"These do not hold: {broken}; found {found}, {later}, {offline}.")


def scored_clip(scores: Path, data: Path) -> tuple[str, Path, float]:
    """Return a test clip: its machine, its file, and the score that score.py gave it."""
    with (scores / "scores.csv").open(encoding="utf-8", newline="") as file:
        row = next(csv.DictReader(file))
    machine_type = row["machine"].split("/")[1]
    [wav] = data.rglob(f"{machine_type}/test/{row['file_name']}")
    return row["machine"], wav, float(row["anomaly_score"])


def minimal_packages(folder: Path) -> Path:
    """Link what transformers, torch and soundfile need, and nothing else, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for dist in requirement_closure(NEEDED):
        for file in dist.files or ():
            top = file.parts[0]
            source = Path(str(dist.locate_file(top)))
            link = folder / top
            if top not in ("..", "__pycache__") and source.exists() and not link.is_symlink():
                link.symlink_to(source)
    return folder


def requirement_closure(names: Sequence[str]) -> list[Distribution]:
    """Return installed distributions and all that they require."""
    found: dict[str, Distribution] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:  # of another platform, or optional
            continue
        for text in found[name].requires or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return list(found.values())


if __name__ == "__main__":
    script(main)
