"""The pipeline "anomalous-sound-detection": a recording in, a verdict out."""

import io
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import Pipeline, PreTrainedModel

from .configuration_asd import FORMAT_VERSION
from .enrolment import (
    WINDOW_SECONDS,
    Enrolment,
    Recording,
    WindowTable,
    cut_windows,
    stretches,
    tell_enrolled,
    too_little,
    too_varied,
)
from .feature_extraction_asd import CHANNELS
from .hub_files import push_files
from .reference_bank import ReferenceBank, local_machine

try:
    import soundfile
except ImportError:  # arrays need no decoder
    soundfile = None

Row = Mapping[str, Any]
Audio = NDArray[Any] | list[float] | Tensor | str | os.PathLike[str] | Row
Result = dict[str, Any]

AUDIO_KEYS = {"bytes", "path", "array"}  # of a cell of a datasets Audio column
TYPICAL = 0.9  # share of references that score below what is called unlike the rest

logger = logging.getLogger(__name__)


class AnomalousSoundDetectionPipeline(Pipeline):
    """Say how far recordings lie from what the reference bank knows as normal.

    `pipeline("anomalous-sound-detection", model=repo_or_folder, trust_remote_code=True)` builds it;
    the checkpoint's bank is read when it is first needed, and refused if it belongs to another
    model. Calling it takes, with `machine=` for a bank of several machines:

    - the path of a wav or flac file: one channel is near, of two the first is near, the second far;
    - `near=`, `far=` (optional) and `sampling_rate=`: waveforms, as `AsdFeatureExtractor` takes;
    - a row of a data set: near, far (each a waveform, a path, or a cell of an Audio column),
      optionally sampling_rate, file_name, and machine, or year, machine_type and section;
    - a list of these, which returns a list, or any other iterable of them, which returns an
      iterator. Neither batch_size nor the clips beside it change a clip's result.

    A result is a dict of plain Python values: anomaly_score, threshold, anomalous, p_value (see
    `Decision`; the last three are None for a machine without calibration), domain_p_values
    (p_value and resolution, the smallest it could be, in each domain with calibration clips; no
    verdict comes from them), nearest_references (file_name, domain and distance of each) and
    machine, its full name. With `map=True` also map: why the score is what it is, the share of each
    piece of time and frequency of the sound that the model hears (after its front end). It has
    values (a list of times, each a list of bands, low first), time_edges_seconds and band_edges_hz
    (one more each), method and neutral, as `AnomalyMap` describes them. Nothing is resampled.
    """

    # The base class's None would type these; they are bool | None.
    _load_tokenizer = _load_processor = False  # type: ignore[assignment]
    _load_image_processor = _load_video_processor = False  # type: ignore[assignment]
    _load_feature_extractor = True  # type: ignore[assignment]

    model: Any  # a DetectorPreTrainedModel, or anything called like it, with its attributes
    feature_extractor: Any  # an AsdFeatureExtractor

    def __init__(self, model: PreTrainedModel, **kwargs: Any) -> None:  # noqa: ANN401  pipeline()'s
        kwargs.pop("local_files_only", None)  # pipeline() hands on what it has already used
        super().__init__(model, **kwargs)
        self.model.eval()
        check_versions(self.model)
        self._reference_bank: ReferenceBank | None = None

    @property
    def reference_bank(self) -> ReferenceBank:
        """The bank that clips are compared with; set it to use, or to save, another one.

        Raises:
            FileNotFoundError: The checkpoint has none, and none was set.
            ValueError: It was fitted on another model's embeddings, or behind another extractor.
        """
        if self._reference_bank is None:
            bank = self.model.load_reference_bank()
            if bank is None:
                raise FileNotFoundError(
                    f"{self.model.name_or_path or 'This model'} has no reference bank. Fit a "
                    "ReferenceBank with this model, and set pipe.reference_bank or save it in the "
                    "model's folder."
                )
            self.reference_bank = bank
        assert self._reference_bank is not None
        return self._reference_bank

    @reference_bank.setter
    def reference_bank(self, bank: ReferenceBank) -> None:
        bank.check_encoder(self.model, self.feature_extractor)
        self._reference_bank = bank

    def __call__(  # type: ignore[override]  # a clip may come as keywords, without inputs
        self,
        inputs: object = None,
        *,
        near: NDArray[Any] | list[float] | Tensor | None = None,
        far: NDArray[Any] | list[float] | Tensor | None = None,
        machine: str | None = None,
        sampling_rate: int | None = None,
        num_nearest: int | None = None,
        map: bool | None = None,
        **kwargs: int | None,
    ) -> Result | list[Result] | Iterator[Result]:
        """Judge one clip or many; the class says what a clip is and what is returned.

        Args:
            inputs: A path, a row, or many of them.
            near: One waveform, (num_samples,), instead of `inputs`.
            far: The far microphone, same length.
            machine: Of every clip, whatever its row says: a full name or a bare machine type.
            sampling_rate: In hertz, of the waveforms whose row does not say it.
            num_nearest: How many of the nearest references are named; 3 by default.
            map: Whether results have a map, at the cost of a second embedding or of many (where
                it is made by occlusion, see anomaly_map.py).
            **kwargs: `batch_size` and `num_workers`, as every pipeline.

        Raises:
            ValueError: A recording that cannot be read or used; the message begins with its name.
            KeyError: The bank holds no such machine, or more than one.
        """
        if (inputs is None) == (near is None):
            raise ValueError(
                "Give either inputs (a path, a row, or many of them) or near=, with far= where "
                "there is a far microphone."
            )
        if near is not None:
            inputs = {"near": near, "far": far}
        elif far is not None:
            raise ValueError("far= goes with near=. For a two-channel file, give only its path.")
        elif isinstance(inputs, (np.ndarray, Tensor)):
            inputs = {"near": inputs}
        elif isinstance(inputs, list) and not inputs:
            return []
        elif isinstance(inputs, Iterable) and not isinstance(inputs, (str, list, Mapping)):
            inputs = (clip for clip in inputs)  # the base class streams a generator, no data set
        _ = self.reference_bank  # read once, before any worker process starts
        given = {"machine": machine, "sampling_rate": sampling_rate, "num_nearest": num_nearest}
        given |= {"map": map}
        options = {name: value for name, value in given.items() if value is not None}
        results: Result | list[Result] | Iterator[Result]
        results = super().__call__(inputs, **kwargs, **options)
        return results

    def _sanitize_parameters(  # type: ignore[override]  # only these, so that a misspelt one raises
        self,
        machine: str | None = None,
        sampling_rate: int | None = None,
        num_nearest: int | None = None,
        map: bool | None = None,  # noqa: FBT001  passed by name
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        before = {"machine": machine, "sampling_rate": sampling_rate}
        during = {} if map is None else {"map": map}
        after = {} if num_nearest is None else {"num_nearest": num_nearest}
        given = {name: value for name, value in before.items() if value is not None}
        return given, during, after

    def preprocess(  # type: ignore[override]  # the base class allows any parameter
        self,
        input_: str | os.PathLike[str] | Row,
        machine: str | None = None,
        sampling_rate: int | None = None,
    ) -> dict[str, Any]:
        """Read one clip and return the model's inputs, (1, num_samples) each, and its machine."""
        row: Row = input_ if isinstance(input_, Mapping) else {"near": os.fspath(input_)}
        if "near" not in row and set(row) & AUDIO_KEYS:
            row = {"near": row}
        if row.get("near") is None:
            raise ValueError(f"A row needs near, but this one has {sorted(row)} only.")
        full_name = self.reference_bank.resolve(machine or _machine_of(row))
        recording = self._recording(row, sampling_rate)
        strength = self.reference_bank.front_end_strength(full_name)
        return self._inputs([recording], strength) | {"machine": full_name}

    def _recording(self, row: Row, sampling_rate: int | None) -> Recording:
        """Read the one or two channels of a row."""
        name = str(row.get("file_name") or _path_of(row["near"]) or "The clip")
        rate = row.get("sampling_rate") or sampling_rate
        channels = self._read(row["near"], f"{name} (near)", rate)
        near, far = channels[CHANNELS["near"]], row.get("far")
        if len(channels) == len(CHANNELS) and far is None:
            far = channels[CHANNELS["far"]]
        elif len(channels) > 1:
            raise ValueError(
                f"{name} has {len(channels)} channels in near; near-far data has 2 (0: near, 1: "
                "far), and a near clip with a far clip beside it has 1."
            )
        elif far is not None:
            far, *others = self._read(far, f"{name} (far)", rate)
            if others:
                raise ValueError(f"{name} has {1 + len(others)} channels in far, expected 1.")
        return Recording(name, near, far)

    def _inputs(self, recordings: Sequence[Recording], strength: float) -> dict[str, Tensor]:
        """Return the model's inputs for a batch, (batch, num_samples) each."""
        inputs = self.feature_extractor(
            [recording.near for recording in recordings],
            [recording.far for recording in recordings],
            sampling_rate=self.feature_extractor.sampling_rate,
            file_names=[recording.name for recording in recordings],
            return_tensors="pt",
        )
        wanted = ("near_values", "far_values", "attention_mask")
        strengths = torch.full((len(recordings),), strength)
        return {key: inputs[key] for key in wanted} | {"front_end_strength": strengths}

    def _forward(  # type: ignore[override]  # the base class allows any parameter
        self,
        input_tensors: dict[str, Any],
        map: bool = False,  # noqa: FBT001, FBT002  the base class passes it by name
    ) -> dict[str, Any]:
        """Embed one batch; the embedding comes first, because its length tells the batch's size."""
        machine = input_tensors.pop("machine")
        machines = [machine] if isinstance(machine, str) else machine
        named = {"machines": machines} if self.model.reads_machines else {}
        outputs = {"embedding": self.model(**input_tensors, **named).embedding, "machine": machine}
        if map:
            maps = [
                self._map({name: x[i : i + 1] for name, x in input_tensors.items()}, machine)
                for i, machine in enumerate(machines)
            ]
            outputs["map"] = maps[0] if isinstance(machine, str) else maps
        return outputs

    def _map(self, inputs: dict[str, Tensor], machine: str) -> Result:
        """Return why one clip scores as it does: alone, without the padding of its batch."""
        length = int(inputs["attention_mask"].sum())
        for name in ("near_values", "far_values", "attention_mask"):
            inputs[name] = inputs[name][:, :length]
        bank: ReferenceBank = self.reference_bank
        detector, profile = bank.fitted_detector(machine), bank.profiles.get(machine)
        drawn = self.model.anomaly_map(inputs, detector, machine=machine, profile=profile)
        described: Result = drawn.as_dict()
        return described

    def postprocess(  # type: ignore[override]  # the base class allows any parameter
        self, model_outputs: dict[str, Any], num_nearest: int = 3
    ) -> Result:
        """Compare one embedding, (1, views, bands, size), with its machine's references."""
        bank, machine = self.reference_bank, model_outputs["machine"]
        embedding = model_outputs["embedding"]
        score = bank.anomaly_score(embedding, machine).item()
        by_domain = bank.domain_p_values(score, machine)
        result = bank.decide(score, machine)._asdict() | {
            "domain_p_values": {domain: told._asdict() for domain, told in by_domain.items()},
            "nearest_references": bank.nearest_references(embedding, machine, k=num_nearest)[0],
            "machine": machine,
        }
        return result | {name: model_outputs[name] for name in ("map",) if name in model_outputs}

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        **kwargs: Any,  # noqa: ANN401  as the base class
    ) -> None:
        """Save model, feature extractor, their code, the reference bank and all that lay beside.

        The card's table of thresholds gets the machines that were enrolled.
        """
        bank, folder = self.reference_bank, Path(save_directory)
        bank.save_pretrained(folder)
        super().save_pretrained(save_directory, **kwargs)
        self.model.keep_what_was_beside(folder)
        tell_enrolled(folder / "README.md", {name: bank.threshold(name) for name in bank.machines})

    def push_to_hub(  # type: ignore[override]  # its card would take the place of the checkpoint's
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        commit_message: str = "Upload an anomalous sound detector",
    ) -> str:
        """Put the whole checkpoint, with this bank, into a repository; return the commit's address.

        Args:
            repo_id: "owner/name"; made if it is not there.
            private: Of a new repository, whether others may not see it.
            revision: The branch; None is main.
            token: With write access.
            commit_message: Of the one commit.
        """
        return push_files(
            self,
            repo_id,
            private=private,
            revision=revision,
            token=token,
            commit_message=commit_message,
        )

    def enroll(
        self,
        name: str,
        clips: Audio | Sequence[Audio],
        *,
        far: Audio | Sequence[Audio] | None = None,
        sampling_rate: int | None = None,
        window_seconds: float = WINDOW_SECONDS,
        front_end_strength: float = 1.0,
        batch_size: int = 8,
    ) -> Enrolment:
        """Learn a machine of your own from minutes of its normal sound; nothing is trained.

        Long recordings are cut in windows, which become its references. Its threshold comes from
        scoring each fifth of the sound by the other four.

        Args:
            name: Of the machine, without a slash; one of that name is replaced.
            clips: Recordings of normal running, as `__call__` takes clips, in the order of time.
            far: The far microphone of each waveform in `clips`; not for files of two channels.
            sampling_rate: In hertz, of waveforms.
            window_seconds: Least length of a window; score clips of about that length.
            front_end_strength: How much of the front end is applied to this machine, in [0, 1]: 0
                where far hears little but the machine.
            batch_size: Windows embedded at once.

        Raises:
            ValueError: A recording that cannot be used, too little for three windows, or a model
                that knows no machines but those it was trained on.
        """
        if self.model.reads_machines:
            raise ValueError(
                f"{type(self.model).__name__} has a network for each machine that it was trained "
                "on, so no other can be enrolled. Train one, or take a model with an encoder."
            )
        if not 0 <= front_end_strength <= 1:
            raise ValueError(f"front_end_strength={front_end_strength} must lie in [0, 1].")
        machine, bank = local_machine(name), self.reference_bank
        rate = self.feature_extractor.sampling_rate
        recordings = [self._recording(row, sampling_rate) for row in _rows(clips, far)]
        windows = cut_windows(recordings, sampling_rate=rate, seconds=window_seconds)
        held_out = stretches(len(windows))
        table = self._embedded(windows, machine, front_end_strength, batch_size)
        rows = np.arange(len(windows))
        folds = [(table.take(np.setdiff1d(rows, out)), table.take(out)) for out in held_out]
        bank.enroll(name, table, folds=folds)
        bank.guard[machine] = front_end_strength
        seconds = sum(len(window.near) for window in windows) / rate
        notes = too_little(len(windows), seconds) + self._varied(machine, table)
        for note in notes:
            logger.warning("%s: %s", machine, note)
        return Enrolment(machine, len(windows), seconds, bank.threshold(machine), notes)

    def _embedded(
        self, windows: Sequence[Recording], machine: str, strength: float, batch_size: int
    ) -> WindowTable:
        """Embed windows of one machine."""
        embedded = []
        with torch.no_grad():
            for start in range(0, len(windows), batch_size):
                inputs = self._inputs(windows[start : start + batch_size], strength)
                output = self.model(**{key: x.to(self.device) for key, x in inputs.items()})
                embedded.append(output.embedding.float().cpu().numpy())
        count = len(windows)
        names = [window.name for window in windows]
        return WindowTable(
            np.concatenate(embedded), names, [machine] * count, [None] * count, ["normal"] * count
        )

    def _varied(self, machine: str, table: WindowTable) -> list[str]:
        """Return what the stretches of an enrolment say about one another."""
        bank = self.reference_bank
        try:
            limit = float(bank.leave_one_out(machine).quantile(TYPICAL))
        except ValueError:  # a coreset has no such scores
            return []
        calibration = bank.calibration(machine)
        scores = dict(zip(calibration.file_names, calibration.anomaly_scores.tolist(), strict=True))
        held_out = np.array([scores[name] for name in table.file_names])
        return too_varied(table.file_names, held_out, limit)

    def _read(self, audio: Audio, name: str, sampling_rate: int | None) -> list[NDArray[Any]]:
        """Return the channels of a waveform, a path or a cell of an Audio column."""
        if isinstance(audio, Mapping) and audio.get("array") is not None:
            sampling_rate = audio.get("sampling_rate", sampling_rate)
            audio = audio["array"]
        if isinstance(audio, (str, os.PathLike, Mapping)):
            channels, sampling_rate = _decode(audio, name)
        else:
            channels = [np.asarray(audio)]
            if channels[0].ndim != 1:
                raise ValueError(
                    f"{name} has shape {channels[0].shape}, expected (num_samples,). Pass the "
                    f"channels apart: {CHANNELS['near']} is near, {CHANNELS['far']} is far."
                )
        expected = self.feature_extractor.sampling_rate
        if sampling_rate is None:
            raise ValueError(f"{name} has no sampling rate. Pass sampling_rate={expected}.")
        if sampling_rate != expected:
            raise ValueError(
                f"{name} is sampled at {sampling_rate} Hz, but this model expects {expected} Hz. "
                "Resample it first, for example with scipy.signal.resample_poly."
            )
        return channels


def check_versions(model: Any) -> None:  # noqa: ANN401  as AnomalousSoundDetectionPipeline.model
    """Warn where the model's code and this pipeline's are of different formats.

    Where nearfar is installed, transformers takes its classes for the model, but the pipeline's
    code comes from the checkpoint.
    """
    installed = getattr(model, "code_format_version", 1)
    if installed != FORMAT_VERSION:
        logger.warning(
            "The model's code (%s) is of format version %d, the pipeline's code (%s) of version "
            "%d: the installed nearfar and the checkpoint differ in age. Should they not work "
            "together, update nearfar or load the checkpoint where it is not installed.",
            type(model).__module__,
            installed,
            __name__,
            FORMAT_VERSION,
        )


def _rows(clips: Any, far: Any) -> list[Row]:  # noqa: ANN401  Audio, one or many
    """Return a row for each recording, each with a name of its own."""
    one = not isinstance(clips, (list, tuple)) or (bool(clips) and isinstance(clips[0], Real))
    near, others = ([clips], [far]) if one else (list(clips), far)
    others = [None] * len(near) if others is None else list(others)
    if len(others) != len(near):
        raise ValueError(f"{len(near)} recordings came with {len(others)} far ones. Pass one each.")
    rows: list[Row] = []
    names: set[str] = set()
    for number, (clip, other) in enumerate(zip(near, others, strict=True), start=1):
        row: dict[str, Any] = (
            dict(clip) if isinstance(clip, Mapping) and "near" in clip else {"near": clip}
        )
        if other is not None:
            row["far"] = other
        path = row.get("file_name") or _path_of(row["near"])
        title = Path(path).name if path else f"recording {number}"
        row["file_name"] = title if title not in names else f"{title} ({number})"
        names.add(row["file_name"])
        rows.append(row)
    return rows


def _decode(
    audio: str | os.PathLike[str] | Row, name: str
) -> tuple[list[NDArray[np.float32]], int]:
    """Return the channels of a sound file, float32 in [-1, 1], and its sampling rate in hertz."""
    if soundfile is None:
        raise ImportError(f"{name} cannot be decoded without soundfile: pip install soundfile.")
    content = audio.get("bytes") if isinstance(audio, Mapping) else None
    path = _path_of(audio)
    if content is None and (path is None or not Path(path).is_file()):
        raise FileNotFoundError(f"{name}: there is no file {path!r}.")
    try:
        samples, sampling_rate = soundfile.read(
            path if content is None else io.BytesIO(content), dtype="float32", always_2d=True
        )
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{name} cannot be decoded: {error} Give a wav or flac file.") from error
    return list(samples.T), sampling_rate


def _path_of(audio: Audio) -> str | None:
    """Return the path that an audio value has, if it has one."""
    path = audio.get("path") if isinstance(audio, Mapping) else audio
    return os.fspath(path) if isinstance(path, (str, os.PathLike)) else None


def _machine_of(row: Mapping[str, Any]) -> str | None:
    """Return a row's machine, "2026/fan/00" or what it gives of that; None if nothing."""
    if row.get("machine") is not None:
        return str(row["machine"])
    year, machine_type, section = (row.get(key) for key in ("year", "machine_type", "section"))
    if machine_type is None or year is None or section is None:
        return machine_type
    return f"{year}/{machine_type}/{section:02d}"


__all__ = ["AnomalousSoundDetectionPipeline"]
