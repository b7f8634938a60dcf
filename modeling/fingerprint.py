"""Which encoder made a bank's embeddings, told by what it makes of one fixed sound."""

import numpy as np
import torch
from torch import Tensor, nn

PROBE_SAMPLES = 16_000
# Largest relative error (L2) of a fingerprint. At BEATs-base's size, bfloat16 is off by 0.007 and
# float16 by 0.001, with random weights; 1 % of noise on every weight moves it by 0.04, another
# initialisation by 1.4.
FULL_PRECISION_TOLERANCE = 0.01
HALF_PRECISION_TOLERANCE = 0.05


def encoder_fingerprint(model: nn.Module) -> Tensor:
    """Return what a model makes of a fixed sound, near and far: (views, bands, size) float32, CPU.

    The sound is a formula (tones, a sweep and pseudo-noise; the far microphone hears the machine
    later and weaker), so it is the same for every version of every library.

    Args:
        model: Called like `AsdModel.forward`. It is run in evaluation mode and left as it was.
    """
    near, far = _probe()
    device = next(model.parameters()).device
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            output = model.eval()(near_values=near.to(device), far_values=far.to(device))
    finally:
        for module, training in modes.items():
            module.training = training
    embedding: Tensor = output.embedding[0]
    return embedding.float().cpu()


def _probe() -> tuple[Tensor, Tensor]:
    """Return near and far, (1, PROBE_SAMPLES) float32 each."""
    n = np.arange(PROBE_SAMPLES, dtype=np.float64)
    t = n / PROBE_SAMPLES
    machine = 0.3 * np.sin(2 * np.pi * 440 * t) + 0.2 * np.sin(2 * np.pi * (200 * t + 1500 * t**2))
    noise = 0.1 * np.sin(0.37 * n**2)  # a fast sweep that aliases all over the spectrum
    late = np.concatenate([np.zeros(20), machine[:-20]])
    near, far = machine + 0.5 * noise, 0.2 * late + noise
    return torch.from_numpy(near).float()[None], torch.from_numpy(far).float()[None]


__all__ = ["FULL_PRECISION_TOLERANCE", "HALF_PRECISION_TOLERANCE", "encoder_fingerprint"]
