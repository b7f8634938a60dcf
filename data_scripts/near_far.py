"""Near-far machine sounds as a Hugging Face dataset: a builder, a loader and the one decoder.

clips = load_near_far("DATA", year=2026)["train"]
decoded(clips)[0]["near"]  # (num_samples,) float32
"""

import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import gcd
from os import PathLike
from typing import Any, TypeVar

import datasets
import numpy as np
import pyarrow as pa
import soundfile
from numpy.typing import NDArray
from scipy.signal import resample_poly

from nearfar.schema import CONDITIONS, DOMAINS, FAR, NEAR, UNKNOWN, machine_name

from .clip_files import (
    LOSSLESS,
    SAMPLING_RATE,
    ClipError,
    ClipFile,
    find_clips,
    find_components,
    fingerprint,
)
from .clip_names import NO_ATTRIBUTE
from .credits import citation_of, homepage_of
from .features import row_features
from .published import find_published, load_published

logger = logging.getLogger(__name__)

AUDIO_COLUMNS = ("near", "far", "clean")  # clean: of simulated clips, and only where asked for

_AnyDataset = TypeVar("_AnyDataset")

DESCRIPTION = """\
Machine sounds of DCASE Task 2 (anomalous sound detection), one row per clip. The near microphone \
stands at the machine, the far one hears the room; both share one clock. Training clips are \
normal; what a file name does not tell is -1 (unknown). Recordings of 2020 to 2025 are mono: they \
have no far."""


@dataclass
class NearFarConfig(datasets.BuilderConfig):  # type: ignore[misc]  # datasets is untyped
    """Which clips to load. Creating it finds and checks them; the options are `load_near_far`'s."""

    year: int = 2026
    machine_types: Sequence[str] | None = None
    subsets: Sequence[str] | None = None
    resample: bool = False
    clean: bool = False
    clips: list[ClipFile] = field(init=False, repr=False)
    components: dict[str, ClipFile] = field(init=False, repr=False)  # by the path of the clip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data_dir is None:
            raise ValueError("NearFarMachineSounds got no data_dir. Pass the folder of the clips.")
        self.clips = find_clips(
            self.data_dir,
            year=self.year,
            machine_types=self.machine_types,
            subsets=self.subsets,
            resample=self.resample,
        )
        found = find_components(self.data_dir, self.clips) if self.clean else []
        self.components = dict(zip((clip.path for clip in self.clips), found, strict=False))

    def create_config_id(
        self, config_kwargs: dict[str, Any], custom_features: datasets.Features | None = None
    ) -> str:
        """Key the cache on clips and options, so that a changed file is noticed."""
        read = [*self.clips, *self.components.values()]
        keys = {**config_kwargs, "fingerprint": fingerprint(read)}
        return str(super().create_config_id(keys, custom_features))


class NearFarMachineSounds(datasets.ArrowBasedBuilder):  # type: ignore[misc]  # datasets is untyped
    """Builder of the rows; `GeneratorBasedBuilder` would need torchcodec and FFmpeg."""

    BUILDER_CONFIG_CLASS = NearFarConfig
    VERSION = datasets.Version("1.0.0")  # of the rows: raise it when they change

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description=DESCRIPTION,
            citation=citation_of(self.config.year),
            homepage=homepage_of(self.config.year),
            features=row_features(clean=self.config.clean),
        )

    def _split_generators(
        self,
        dl_manager: datasets.DownloadManager,  # noqa: ARG002  # datasets passes it by position
    ) -> list[datasets.SplitGenerator]:
        # A list is what num_proc and streaming cut into shards: here, one clip is a shard.
        splits = {
            split: [clip for clip in self.config.clips if clip.split == split]
            for split in (datasets.Split.TRAIN, datasets.Split.TEST)
        }
        return [
            datasets.SplitGenerator(name=split, gen_kwargs={"clips": clips})
            for split, clips in splits.items()
            if clips
        ]

    def _generate_tables(self, clips: list[ClipFile]) -> Iterator[tuple[int, pa.Table]]:
        schema = self.info.features.arrow_schema
        silent = []
        for key, clip in enumerate(clips):
            samples, sampling_rate, subtype = _read(clip)
            silent += [
                f"{clip.relative} ({microphone})"
                for microphone, channel in zip(("near", "far"), samples.T, strict=False)
                if not channel.any()
            ]
            if sampling_rate != SAMPLING_RATE:
                samples, subtype = _resample(samples, sampling_rate), "FLOAT"
            row = self._row(clip, samples, subtype)
            if self.config.clean:
                parts, _, subtype = _read(self.config.components[clip.path])
                stem = row["file_name"].removesuffix(".wav")
                row["clean"] = _encode(parts[:, NEAR], subtype, f"clean/{stem}")
            yield key, pa.Table.from_pylist([row], schema=schema)
        if silent:
            more = f" and {len(silent) - 10} more" if len(silent) > 10 else ""
            logger.warning(
                "Loaded, but every sample is zero: %s%s. Check the microphone or its cable.",
                ", ".join(silent[:10]),
                more,
            )

    def _row(self, clip: ClipFile, samples: NDArray[Any], subtype: str) -> dict[str, Any]:
        """Return the clip's row; samples (num_samples, channels)."""
        name = clip.name
        stem = name.format().removesuffix(".wav")
        mono = samples.shape[1] == 1
        return {
            "near": _encode(samples[:, NEAR], subtype, f"near/{stem}"),
            "far": None if mono else _encode(samples[:, FAR], subtype, f"far/{stem}"),
            "file_name": name.format(),
            "machine_type": clip.machine_type,
            "section": name.section,
            "domain": UNKNOWN if name.domain is None else DOMAINS.index(name.domain),
            "condition": UNKNOWN if name.condition is None else CONDITIONS.index(name.condition),
            "attributes": "" if name.attributes in (None, NO_ATTRIBUTE) else name.attributes,
            "year": self.config.year,
        }


def load_near_far(
    data_dir: str | PathLike[str],
    *,
    year: int = 2026,
    machine_types: Sequence[str] | None = None,
    subsets: Sequence[str] | None = None,
    streaming: bool = False,
    num_proc: int | None = None,
    resample: bool = False,
    clean: bool = False,
    cache_dir: str | PathLike[str] | None = None,
) -> datasets.DatasetDict | datasets.IterableDatasetDict:
    """Load recordings: splits "train" and "test", one row per clip.

    Samples are kept without loss: PCM_16 as FLAC, bit for bit; floating point as it is, also
    beyond [-1, 1]. The result is cached and built again when a clip comes, goes or is written
    again (its name, size and time of change are compared, not its samples). Headers are checked
    at every call, before anything is written, which takes seconds for 12,000 clips.

    Published recordings (`python -m data_scripts.publish`), in a folder or on the Hub, give the
    same rows in the same order; they were checked when they were published.

    Args:
        data_dir: Holds <machine>/{train,test}/*.wav below dev_data/raw, eval_data/raw or itself;
            or published recordings; or "owner/name" or "owner/name@revision" on the Hub.
        year: Of the recordings; 2026 is two-channel (0: near, 1: far), 2020 to 2025 are mono.
        machine_types: Load only these; None loads all.
        subsets: Load only these, of "dev", "eval_train" and "eval_test"; None loads all found.
        streaming: Read clips when they are asked for, without a cache; every clip is a shard, of
            published recordings every file.
        num_proc: Processes that build the cache.
        resample: Bring other sampling rates to 16 kHz (polyphase filter); such clips are stored as
            32-bit floating-point WAV, unclipped. Without it they are refused.
        clean: Add a column "clean", what near hears of the machine alone; of a simulated factory
            that was written with its components.
        cache_dir: Where the rows are kept; None is the default of datasets.

    Raises:
        FileNotFoundError: The folder is missing, or it or a part of it holds no clip.
        ValueError: An option names something that does not exist, or (`ClipError`) a clip cannot
            be loaded as it is; the message names it. Nothing half-written stays in the cache.
    """
    cache = None if cache_dir is None else str(cache_dir)
    machine_types, subsets = _names(machine_types), _names(subsets)
    if (published := find_published(data_dir)) is not None:
        if clean:
            raise ValueError(
                f"{data_dir} is published, and such recordings have no clean channel. Give the "
                "folder that the factory wrote, with components."
            )
        return load_published(
            published,
            year=year,
            machine_types=machine_types,
            subsets=subsets,
            streaming=streaming,
            num_proc=num_proc,
            cache_dir=cache,
        )
    builder = NearFarMachineSounds(
        data_dir=str(data_dir),
        cache_dir=cache,
        year=year,
        machine_types=machine_types,
        subsets=subsets,
        resample=resample,
        clean=clean,
    )
    if streaming:
        return builder.as_streaming_dataset()
    builder.download_and_prepare(num_proc=num_proc)
    return builder.as_dataset()


def decode_audio(
    audio: Mapping[str, Any], *, sampling_rate: int = SAMPLING_RATE
) -> NDArray[np.float32]:
    """Return one microphone's samples, (num_samples,) float32.

    16-bit PCM is int16 / 32768, exactly; floating point comes as it is stored.

    Args:
        audio: What an `Audio(decode=False)` column holds: "bytes" of a file, or else its "path".
        sampling_rate: That is expected, in hertz.

    Raises:
        TypeError: The column decodes audio itself.
        ValueError: The audio has another rate or several channels, is damaged, or is not there.
    """
    if not isinstance(audio, Mapping):
        raise TypeError(
            f"Audio came as {type(audio).__name__}, expected a dict of bytes and path. "
            "Cast the column with Audio(decode=False) first."
        )
    data, path = audio.get("bytes"), audio.get("path")
    if data is None and path is None:
        raise ValueError("Audio has neither bytes nor a path. Load the clip again.")
    source = path if data is None else io.BytesIO(data)
    try:
        samples, actual_rate = soundfile.read(source, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise ValueError(
            f"{path or 'Audio'} cannot be decoded ({error.error_string}). Load the clip again."
        ) from error
    if actual_rate != sampling_rate:
        raise ValueError(
            f"{path or 'Audio'} is sampled at {actual_rate} Hz, expected {sampling_rate} Hz. "
            "Resample it first; load_near_far does with resample=True."
        )
    if samples.shape[1] != 1:
        raise ValueError(
            f"{path or 'Audio'} has {samples.shape[1]} channels, expected 1: near and far are "
            "columns of their own. Split the recording first."
        )
    mono: NDArray[np.float32] = samples[:, 0]
    return mono


def decoded(dataset: _AnyDataset) -> _AnyDataset:
    """Return the dataset with rows in Python's terms, decoded when they are read.

    A row becomes {"near": (num_samples,) float32, "far": the same or None, "file_name", "machine":
    "2026/fan/00", "machine_type", "section", "domain": "source" | "target" | None, "condition":
    "normal" | "anomaly" | None, "attributes", "year"}. Other columns pass through.

    Args:
        dataset: A Dataset, an IterableDataset, or a dict of one of them.
    """
    dataset = _undecoded(dataset)
    if isinstance(dataset, (datasets.Dataset, datasets.DatasetDict)):
        return dataset.with_transform(_decode_batch)  # type: ignore[no-any-return]  # untyped
    if isinstance(dataset, (datasets.IterableDataset, datasets.IterableDatasetDict)):
        return dataset.map(decode_row)  # type: ignore[no-any-return]  # untyped
    raise TypeError(
        f"decoded got a {type(dataset).__name__}, expected a dataset of the datasets library. "
        "Pass what load_near_far or load_dataset returns."
    )


def known(dataset: datasets.Dataset) -> list[dict[str, Any]]:
    """Return the rows as `decoded` gives them, without sound: all that names tell."""
    audio = [name for name in AUDIO_COLUMNS if name in dataset.column_names]
    return list(decoded(dataset.remove_columns(audio)))


def _undecoded(dataset: Any) -> Any:  # noqa: ANN401 - what `decoded` is given
    """Take away the decoding that datasets would do, as in what `load_dataset` gives."""
    if isinstance(dataset, dict):
        splits = {split: _undecoded(rows) for split, rows in dataset.items()}
        return type(dataset)(splits)
    for column, feature in (getattr(dataset, "features", None) or {}).items():
        if isinstance(feature, datasets.Audio) and feature.decode:
            dataset = dataset.cast_column(column, replace(feature, decode=False))
    return dataset


def _decode_batch(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    rows = [
        decode_row(dict(zip(batch, row, strict=True))) for row in zip(*batch.values(), strict=True)
    ]
    return {column: [row[column] for row in rows] for column in (rows[0] if rows else batch)}


def decode_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return one row as `decoded` gives it, of the columns that are there."""
    result = dict(row)
    for microphone in AUDIO_COLUMNS:
        if row.get(microphone) is not None:
            result[microphone] = decode_audio(row[microphone])
    for column, words in (("domain", DOMAINS), ("condition", CONDITIONS)):
        if column in row:
            value = row[column]
            result[column] = None if value in (None, UNKNOWN) else words[value]
    if {"year", "machine_type", "section"} <= row.keys():
        result["machine"] = machine_name(row["year"], row["machine_type"], row["section"])
    return result


def _read(clip: ClipFile) -> tuple[NDArray[Any], int, str]:
    """Return samples (num_samples, channels), their rate in hertz and the file's subtype."""
    try:
        with soundfile.SoundFile(clip.path) as file:
            dtype = LOSSLESS[file.subtype][0]
            samples = file.read(dtype=dtype, always_2d=True)
            rate, subtype = file.samplerate, file.subtype
    except soundfile.LibsndfileError as error:
        raise ClipError(
            f"{clip.relative} cannot be read ({error.error_string}). Copy or download it again."
        ) from error
    if not np.isfinite(samples).all():
        first = np.argwhere(~np.isfinite(samples))[0]
        raise ClipError(
            f"{clip.relative} has a sample that is not a finite number (sample {first[0]} of "
            f"channel {first[1]}). Record or convert it again."
        )
    return samples, rate, subtype


def _resample(samples: NDArray[Any], sampling_rate: int) -> NDArray[np.float32]:
    """Bring samples (num_samples, channels) of any type to 16 kHz, full scale 1."""
    scale = -float(np.iinfo(samples.dtype).min) if samples.dtype.kind == "i" else 1.0
    samples = samples.astype(np.float64) / scale
    common = gcd(sampling_rate, SAMPLING_RATE)
    up, down = SAMPLING_RATE // common, sampling_rate // common
    resampled: NDArray[Any] = resample_poly(samples, up, down, axis=0)
    return resampled.astype(np.float32)


def _encode(samples: NDArray[Any], subtype: str, path: str) -> dict[str, Any]:
    """Return one microphone's clip (num_samples,) as an Audio column stores it, without loss."""
    _, file_format, stored_subtype = LOSSLESS[subtype]
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLING_RATE, format=file_format, subtype=stored_subtype)
    return {"bytes": buffer.getvalue(), "path": f"{path}.{file_format.lower()}"}


def _names(values: Sequence[str] | None) -> list[str] | None:
    """Sort names, so that their order makes no second cache; one name is a list of one."""
    if values is None:
        return None
    return [values] if isinstance(values, str) else sorted(set(values))
