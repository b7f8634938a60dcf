"""The handler that an inference endpoint of the Hub runs: a recording in, a verdict out, as JSON.

An endpoint imports this file by itself, out of the repository's folder, so it may import nothing
that lies beside it: the pipeline comes through transformers.
"""

import base64
import binascii
import io
from collections.abc import Mapping
from typing import Any

from transformers import pipeline

try:
    import soundfile
except ImportError:  # an endpoint's requirements.txt brings it
    soundfile = None

MAX_BYTES = 32 * 2**20  # of one recording as it comes, decoded from base64
MAX_SECONDS = 120.0  # of one recording; a compressed file may hold more than its size suggests
MAX_NEAREST = 50
PARAMETERS = ("machine", "num_nearest")


class EndpointHandler:
    """Judge recordings that come as requests.

    A request is {"inputs": ..., "parameters": {"machine": "fan", "num_nearest": 3}}; parameters may
    be left out where the bank knows one machine. Inputs are a wav or flac file, as bytes or in
    base64: of one channel, near, or of two, near and far; or {"near": file, "far": file}. The
    answer is the pipeline's, plain JSON. Addresses and paths are refused, and what is too large:
    nothing is fetched for a stranger.

    Args:
        path: The folder of the repository.
    """

    def __init__(self, path: str = "") -> None:
        task: Any = "anomalous-sound-detection"  # transformers knows its own tasks' names only
        self.pipe: Any = pipeline(task, model=path, trust_remote_code=True)
        _ = self.pipe.reference_bank  # refuse a checkpoint without one at the start

    def __call__(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Answer one request.

        Raises:
            ValueError: It cannot be answered; the message is for the one who sent it.
        """
        if not isinstance(data, Mapping) or data.get("inputs") is None:
            raise ValueError('A request needs "inputs": a wav or flac file, as bytes or base64.')
        parameters = checked_parameters(data.get("parameters") or {})
        inputs = data["inputs"]
        if isinstance(inputs, Mapping):
            if unknown := sorted(set(inputs) - {"near", "far"}) or "near" not in inputs:
                raise ValueError(f"inputs may have near and far, and must have near; {unknown=}.")
            row = {name: recording(file, name) for name, file in inputs.items() if file is not None}
        else:
            row = {"near": recording(inputs, "inputs")}
        try:
            answer: dict[str, Any] = self.pipe(row, **parameters)
        except KeyError as error:  # an unknown machine; as ValueError it reads the same everywhere
            raise ValueError(str(error)) from error
        return answer


def checked_parameters(parameters: Any) -> dict[str, Any]:  # noqa: ANN401  a stranger's JSON
    """Return a request's parameters, or raise ValueError."""
    if not isinstance(parameters, Mapping) or set(parameters) - set(PARAMETERS):
        raise ValueError(f"parameters must be a mapping of {list(PARAMETERS)}, got {parameters!r}.")
    machine, num_nearest = (parameters.get(name) for name in PARAMETERS)
    if machine is not None and not isinstance(machine, str):
        raise ValueError(f"machine must be a name, got {machine!r}.")
    whole = isinstance(num_nearest, int) and not isinstance(num_nearest, bool)
    if num_nearest is not None and not (whole and 1 <= num_nearest <= MAX_NEAREST):
        raise ValueError(f"num_nearest must be 1 to {MAX_NEAREST}, got {num_nearest!r}.")
    return {name: value for name, value in parameters.items() if value is not None}


def recording(file: Any, name: str) -> dict[str, bytes]:  # noqa: ANN401  a stranger's JSON
    """Return a recording as the pipeline takes it, checked before it is decoded.

    Args:
        file: Bytes, or a string of base64, also as a data URL.
        name: For messages.
    """
    if isinstance(file, str):
        encoded = file.partition("base64,")[2] if file.startswith("data:") else file
        if len(encoded) > MAX_BYTES * 4 // 3 + 4:
            raise too_large(name)
        try:
            file = base64.b64decode("".join(encoded.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError(
                f"{name} is no base64. Send the file itself: addresses and paths are not fetched."
            ) from error
    if not isinstance(file, (bytes, bytearray)):
        raise ValueError(f"{name} must be bytes or base64, got {type(file).__name__}.")
    if len(file) > MAX_BYTES:
        raise too_large(name)
    if soundfile is None:
        raise ValueError("This endpoint has no soundfile. Add it to requirements.txt.")
    try:
        seconds = soundfile.info(io.BytesIO(file)).duration
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{name} cannot be decoded. Send a wav or flac file.") from error
    if not seconds <= MAX_SECONDS:
        raise ValueError(
            f"{name} lasts {seconds:.0f} s, and {MAX_SECONDS:.0f} s is the most. Send it in parts."
        )
    return {"bytes": bytes(file)}


def too_large(name: str) -> ValueError:
    """Return the error for a recording of too many bytes."""
    return ValueError(
        f"{name} is larger than {MAX_BYTES // 2**20} MiB, which is the most. Send it in parts."
    )


__all__ = ["EndpointHandler"]
