"""What a published checkpoint carries: configuration, feature extractor, networks, reference bank.

Importing this package registers its classes with transformers' Auto classes. A checkpoint's own
code does not need it.
"""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .adversary import ADVERSARIES, Adversary
from .anomaly_map import AnomalyMap, BandMeans
from .calibration import THRESHOLDS, Calibration, Decision, DomainPValue, ThresholdName
from .configuration_asd import (
    FORMAT_VERSION,
    AsdConfig,
    BeatsConfig,
    EatConfig,
    FisherConfig,
    NoiseAwareConfig,
)
from .configuration_autoencoder import AutoencoderConfig
from .detectors import (
    DETECTORS,
    Detector,
    GmmDetector,
    KmeansDetector,
    KnnDetector,
    LofDetector,
    MahalanobisDetector,
    NormDetector,
    NotFittedError,
)
from .feature_extraction_asd import CHANNELS, AsdFeatureExtractor
from .fingerprint import encoder_fingerprint
from .front_ends import (
    FRONT_ENDS,
    CoherenceGain,
    ComplexLeastSquares,
    FrequencyDomainNlms,
    FrontEnd,
    Lms,
    NearFrontEnd,
    Nlms,
    Rls,
    SpectralSubtraction,
    WienerGain,
)
from .heads import (
    HEADS,
    AdaCosHead,
    AdaProjHead,
    ArcFaceHead,
    ContrastiveHead,
    Head,
    HeadOutput,
    SubclusterAdaCosHead,
)
from .modeling_asd import (
    ENCODERS,
    LORA_MODULES_TO_SAVE,
    LORA_TARGET_MODULES,
    AsdForProxyClassification,
    AsdModel,
    AsdModelOutput,
    AsdOutput,
    AsdPreTrainedModel,
    lora_target_modules,
)
from .modeling_autoencoder import AutoencoderModel, ReconstructionNetwork
from .modeling_beats import BeatsForAudioClassification, BeatsModel
from .modeling_eat import EatForAudioClassification, EatModel
from .modeling_fisher import FisherModel
from .modeling_noise_aware import NoiseAwareModel
from .pipeline_asd import AnomalousSoundDetectionPipeline
from .pooling import (
    POOLINGS,
    AttentiveStatisticsPooling,
    ClsPooling,
    GemPooling,
    MeanPooling,
    RdpPooling,
)
from .reference_bank import ReferenceBank, UnknownMachineError

for _config, _model, _classifier in (
    (BeatsConfig, BeatsModel, BeatsForAudioClassification),
    (EatConfig, EatModel, EatForAudioClassification),
    (FisherConfig, FisherModel, None),
    (NoiseAwareConfig, NoiseAwareModel, None),
    (AsdConfig, AsdModel, AsdForProxyClassification),
    (AutoencoderConfig, AutoencoderModel, None),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)
    if _classifier is not None:
        AutoModelForAudioClassification.register(_config, _classifier, exist_ok=True)
    AutoFeatureExtractor.register(_config, AsdFeatureExtractor, exist_ok=True)
# For pipeline("anomalous-sound-detection", model=model, feature_extractor=its_extractor); a folder
# brings its own pipeline, which transformers takes with trust_remote_code=True only.
PIPELINE_REGISTRY.register_pipeline(
    "anomalous-sound-detection",
    pipeline_class=AnomalousSoundDetectionPipeline,
    pt_model=AutoModel,
    type="audio",
)

__all__ = [
    "ADVERSARIES",
    "CHANNELS",
    "DETECTORS",
    "ENCODERS",
    "FORMAT_VERSION",
    "FRONT_ENDS",
    "HEADS",
    "LORA_MODULES_TO_SAVE",
    "LORA_TARGET_MODULES",
    "POOLINGS",
    "THRESHOLDS",
    "AdaCosHead",
    "AdaProjHead",
    "Adversary",
    "AnomalousSoundDetectionPipeline",
    "AnomalyMap",
    "ArcFaceHead",
    "AsdConfig",
    "AsdFeatureExtractor",
    "AsdForProxyClassification",
    "AsdModel",
    "AsdModelOutput",
    "AsdOutput",
    "AsdPreTrainedModel",
    "AttentiveStatisticsPooling",
    "AutoencoderConfig",
    "AutoencoderModel",
    "BandMeans",
    "BeatsConfig",
    "BeatsForAudioClassification",
    "BeatsModel",
    "Calibration",
    "ClsPooling",
    "CoherenceGain",
    "ComplexLeastSquares",
    "ContrastiveHead",
    "Decision",
    "Detector",
    "DomainPValue",
    "EatConfig",
    "EatForAudioClassification",
    "EatModel",
    "FisherConfig",
    "FisherModel",
    "FrequencyDomainNlms",
    "FrontEnd",
    "GemPooling",
    "GmmDetector",
    "Head",
    "HeadOutput",
    "KmeansDetector",
    "KnnDetector",
    "Lms",
    "LofDetector",
    "MahalanobisDetector",
    "MeanPooling",
    "NearFrontEnd",
    "Nlms",
    "NoiseAwareConfig",
    "NoiseAwareModel",
    "NormDetector",
    "NotFittedError",
    "RdpPooling",
    "ReconstructionNetwork",
    "ReferenceBank",
    "Rls",
    "SpectralSubtraction",
    "SubclusterAdaCosHead",
    "ThresholdName",
    "UnknownMachineError",
    "WienerGain",
    "encoder_fingerprint",
    "lora_target_modules",
]
