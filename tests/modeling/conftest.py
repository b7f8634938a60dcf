from functools import cache

import pytest
import torch
from torch import Tensor

from modeling import AsdConfig, AsdForProxyClassification, Detector
from modeling.detectors import BANK_DETECTORS
from tests.modeling.detector_cases import CASES, DOMAINS, clips
from tests.tiny import TINY_ENCODER


@pytest.fixture
def references() -> Tensor:
    """Embeddings of 20 normal clips, for detectors."""
    return clips(20, seed=0)


@pytest.fixture
def tiny_config():
    """Return a function that makes a small AsdConfig; keyword arguments override its fields.

    Those of `encoder` override the tiny BEATs', or describe another encoder by its model_type.
    """

    def make(*, encoder: dict | None = None, **options) -> AsdConfig:
        described = encoder or {}
        if "model_type" not in described:
            described = TINY_ENCODER | described
        return AsdConfig(encoder_config=described, **({"num_labels": 5} | options))

    return make


@pytest.fixture
def tiny_model(tiny_config):
    """Return a function that makes a small AsdForProxyClassification in evaluation mode, seeded."""

    def make(**options) -> AsdForProxyClassification:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return AsdForProxyClassification(tiny_config(**options)).eval()

    return make


@pytest.fixture
def pairs():
    """Return three near and far clips of different lengths, each (num_samples,)."""
    generator = torch.Generator().manual_seed(0)

    def pair(num_samples: int) -> tuple[Tensor, Tensor]:
        machine, noise = 0.1 * torch.randn(2, num_samples, generator=generator)
        return machine + 0.5 * noise, 0.3 * machine + noise

    return [pair(n) for n in (8_000, 5_001, 6_600)]


@pytest.fixture(params=CASES)
def new_detector(request):
    """Return a function that constructs the detector of a case; keyword arguments override."""
    name, options = CASES[request.param]

    def construct(**more) -> Detector:
        return BANK_DETECTORS[name](**options | more)

    construct.case, construct.options = request.param, options
    return construct


@cache
def fitted(case: str) -> Detector:
    name, options = CASES[case]
    return BANK_DETECTORS[name](**options).fit(clips(20, seed=0), domains=DOMAINS)


@pytest.fixture
def detector(new_detector) -> Detector:
    """Return the detector of a case, fitted; it is the same for all tests, so leave it as it is."""
    return fitted(new_detector.case)
