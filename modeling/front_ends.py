"""Near and far waveform -> cleaned near waveform, before any encoder: the registry.

Front ends have no learnt weights and compute in float32 (float64 for float64 waveforms), whatever
the precision of the model around them. They share three laws: a silent far channel returns near,
scaling both channels scales the result, and a clip is cleaned as if it were alone: neither its
padding nor the clips beside it matter. The gradient flows through all of them, to near and far.
"""

from .adaptive_front_ends import FrequencyDomainNlms, Lms, Nlms, Rls
from .front_end_base import FrontEnd, NearFrontEnd
from .spectral_front_ends import (
    CoherenceGain,
    ComplexLeastSquares,
    SpectralSubtraction,
    WienerGain,
)

FRONT_ENDS: dict[str, type[FrontEnd]] = {  # name in AsdConfig -> constructor
    "near": NearFrontEnd,
    "complex_least_squares": ComplexLeastSquares,
    "spectral_subtraction": SpectralSubtraction,
    "wiener": WienerGain,
    "coherence": CoherenceGain,
    "lms": Lms,
    "nlms": Nlms,
    "rls": Rls,
    "block_nlms": FrequencyDomainNlms,
}

__all__ = [
    "FRONT_ENDS",
    "CoherenceGain",
    "ComplexLeastSquares",
    "FrequencyDomainNlms",
    "FrontEnd",
    "Lms",
    "NearFrontEnd",
    "Nlms",
    "Rls",
    "SpectralSubtraction",
    "WienerGain",
]
