"""The columns of a row as datasets knows them: one definition for what is built and published."""

import datasets

from nearfar.schema import CONDITIONS, DOMAINS

from .clip_files import SAMPLING_RATE


def row_features(*, decode: bool = False, clean: bool = False) -> datasets.Features:
    """Return the features of a row.

    Args:
        decode: Whether datasets decodes audio when a row is read, which needs torchcodec. Published
            files say that it does, for then the Hub plays them; this project never asks for it.
        clean: Whether rows have the machine alone as near hears it, which simulated clips may.
    """
    audio = datasets.Audio(sampling_rate=SAMPLING_RATE, decode=decode)
    columns = {
        "near": audio,
        "far": audio,
        **({"clean": audio} if clean else {}),
        "file_name": datasets.Value("string"),
        "machine_type": datasets.Value("string"),
        "section": datasets.Value("int32"),
        "domain": datasets.ClassLabel(names=list(DOMAINS)),
        "condition": datasets.ClassLabel(names=list(CONDITIONS)),
        "attributes": datasets.Value("string"),
        "year": datasets.Value("int32"),
    }
    return datasets.Features(columns)
