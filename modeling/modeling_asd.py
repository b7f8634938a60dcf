"""The detector's network: front end, encoder, pooling, projection, and the head for training."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput, can_return_tuple

from .adversary import ADVERSARIES, Adversary, reversal_strength
from .anomaly_map import AnomalyMap, embedding_map, waveforms_of
from .configuration_asd import CHANNELS, AsdConfig
from .detector_base import Detector
from .detector_checkpoint import DetectorPreTrainedModel
from .encoder_inputs import check_far
from .front_ends import FRONT_ENDS
from .heads import HEADS, Head
from .modeling_noise_aware import WRAPPED_ENCODERS, NoiseAwareModel, WrappedEncoder
from .pooling import POOLINGS, HeardLayer, Pooling
from .spec_augment import mask_spectrogram

Encoder = WrappedEncoder | NoiseAwareModel
# model_type of the encoder's config -> constructor
ENCODERS: dict[str, Callable[[Any], Encoder]] = {
    **WRAPPED_ENCODERS,
    "nearfar_noise_aware": NoiseAwareModel,
}

# PEFT's target_modules by model_type: all linear maps of all layers, those of the attention first.
# Queries, keys and values alone are the usual choice: ("q_proj", "k_proj", "v_proj") or ("qkv",).
# Those of a noise-aware encoder are the ones that it adds; `lora_target_modules` knows all of them.
LORA_TARGET_MODULES = {
    "nearfar_beats": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
    "nearfar_eat": ("qkv", "out_proj", "fc1", "fc2"),
    "nearfar_fisher": ("qkv", "out_proj", "fc1", "fc2"),
    "nearfar_noise_aware": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
}
# PEFT's modules_to_save for an AsdForProxyClassification: what is new and trained in full. PEFT
# compares the ends of names, and a bare "projection" would take in that of BEATs' patches.
LORA_MODULES_TO_SAVE = (
    *("asd.pooling", "asd.projection", "head"),
    *("domain_adversary", "channel_adversary"),
)


def lora_target_modules(encoder_config: Any) -> tuple[str, ...]:  # noqa: ANN401  any encoder's
    """Return PEFT's target_modules for an encoder: all linear maps of all its layers."""
    targets = LORA_TARGET_MODULES[encoder_config.model_type]
    if encoder_config.model_type == "nearfar_noise_aware":
        wrapped = LORA_TARGET_MODULES[encoder_config.encoder_config.model_type]
        targets = tuple(dict.fromkeys((*wrapped, *targets)))
    return targets


@dataclass
class AsdModelOutput(ModelOutput):
    """What an `AsdModel` makes of a batch.

    Attributes:
        embedding: (batch, views, bands, size), what is scored: pooled or projected, as
            `config.scored_embedding` and `config.scored_pooling` say. Views are ordered by
            channel, then by layer.
        projected_embedding: (batch, views, bands, size'), what a head is trained on.
    """

    embedding: Tensor | None = None
    projected_embedding: Tensor | None = None


@dataclass
class AsdOutput(ModelOutput):
    """What an `AsdForProxyClassification` makes of a batch.

    Attributes:
        loss: Scalar, None without labels.
        logits: (batch, num_labels) float32.
        embedding: (batch, views, bands, size), as `AsdModelOutput`'s.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    embedding: Tensor | None = None


class AsdPreTrainedModel(DetectorPreTrainedModel):
    """What both models share: how weights start, and which classes read a checkpoint folder."""

    config_class = AsdConfig
    config: AsdConfig
    base_model_prefix = "asd"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True

    AUTO_MAP: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_asd.AsdConfig",
        "AutoModel": "modeling_asd.AsdModel",
        "AutoModelForAudioClassification": "modeling_asd.AsdForProxyClassification",
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, (Head, Adversary)):
            module.reset_parameters()

    def anomaly_map(
        self,
        inputs: Mapping[str, Tensor | None],
        detector: Detector,
        *,
        machine: str,  # noqa: ARG002  an autoencoder's
        profile: Tensor | None = None,
    ) -> AnomalyMap:
        """Return why one clip scores as it does; see anomaly_map.py.

        Args:
            inputs: What `forward` takes, of one clip without padding.
            detector: Of the clip's machine, fitted.
            machine: Not read.
            profile: Of the machine's normal clips, see `BandMeans`; None without one.

        Raises:
            ValueError: The profile is another model's, or as `forward`.
        """
        return embedding_map(self.base_model, inputs, detector, profile)

    def heard_waveform(self, inputs: Mapping[str, Tensor | None]) -> Tensor:
        """Return what the first channel that is heard sounds like, (batch, num_samples) float32.

        Args:
            inputs: What `forward` takes.
        """
        model: Any = self.base_model
        return waveforms_of(model, inputs)[model.heard_channels[0]]


class AsdModel(AsdPreTrainedModel):
    """Clips -> embeddings: front end, encoder, pooling and, if configured, a projection.

    Encoder layers above the deepest scored one are not built: they would cost time and memory, and
    never see a gradient, which distributed training refuses.
    """

    # What only training needs; a ClassVar would not do, it is an instance attribute above.
    _keys_to_ignore_on_load_unexpected = [r"^head\.", r"^(domain|channel)_adversary\."]  # noqa: RUF012

    def __init__(self, config: AsdConfig) -> None:
        super().__init__(config)
        encoder_config: Any = config.encoder_config  # of the class that its model_type names
        self.layers = tuple(config.layers or [encoder_config.num_hidden_layers])  # counted from 1
        self.front_end = FRONT_ENDS[config.front_end](**(config.front_end_options or {}))
        self.encoder = ENCODERS[encoder_config.model_type](encoder_config)
        self.encoder.layers = self.encoder.layers[: max(self.layers)]
        self.pooling = self.build_pooling(config.pooling, config.pooling_options)
        self.scored_pooling = None
        if config.scored_pooling is not None:
            self.scored_pooling = self.build_pooling(
                config.scored_pooling, config.scored_pooling_options
            )
        bands = 1
        if config.join_bands:
            _, band = self.encoder.patch_grid(config.sampling_rate)
            bands = self.pooling.num_bands(band, self.encoder.num_class_tokens)
        self.projection = Projection(config, bands * self.pooling.output_size)
        self.post_init()

    def build_pooling(self, name: str, options: dict[str, Any] | None) -> Pooling:
        """Return a pooling of the encoder's hidden states, or raise ValueError."""
        encoder_config: Any = self.config.encoder_config
        pooling: Pooling = POOLINGS[name](encoder_config.hidden_size, **(options or {}))
        if pooling.reads_class_tokens and not self.encoder.num_class_tokens:
            others = sorted(key for key, cls in POOLINGS.items() if not cls.reads_class_tokens)
            raise ValueError(
                f"Pooling {name!r} takes class tokens, but {type(self.encoder).__name__} has none. "
                f"Take one of {others}, or another encoder."
            )
        return pooling

    def load_encoder(self, encoder: nn.Module) -> None:
        """Take over the weights of a pre-trained encoder, but for the layers that are not scored.

        Args:
            encoder: Of the class and the sizes that `config.encoder_config` describes.

        Raises:
            ValueError: It lacks a weight, or has one too many.
        """
        missing, unexpected = self.encoder.load_state_dict(encoder.state_dict(), strict=False)
        layers: Any = encoder.layers
        unscored = tuple(f"layers.{i}." for i in range(max(self.layers), len(layers)))
        unexpected = [key for key in unexpected if not key.startswith(unscored)]
        if missing or unexpected:
            raise ValueError(
                f"The encoder does not fit config.encoder_config: missing {missing}, unexpected "
                f"{unexpected}. Take its own config: AsdConfig(encoder_config=encoder.config)."
            )

    def freeze_layers(self, trainable_layers: int | None) -> None:
        """Let only the encoder's last layers train, and freeze what lies before them.

        That includes what embeds the patches, and BEATs' position bias, which all layers share.
        Pooling, projection and head train whatever is frozen. Freezing is for training only:
        `from_pretrained` lets every parameter train again.

        Args:
            trainable_layers: How many layers train, counted back from the deepest one scored; 0
                freezes the encoder. All of them, or None, freeze nothing.

        Raises:
            ValueError: The encoder does not have so many layers.
        """
        built = len(self.encoder.layers)
        trainable = built if trainable_layers is None else trainable_layers
        if not 0 <= trainable <= built:
            raise ValueError(
                f"trainable_layers={trainable_layers}, but the encoder has {built} layers up to "
                f"the deepest one scored. Give 0 to {built}, or None to train all."
            )
        self.encoder.requires_grad_(requires_grad=trainable == built)
        for layer in self.encoder.layers[built - trainable :]:
            layer.requires_grad_()

    @can_return_tuple  # type: ignore[untyped-decorator]  # transformers' own
    def forward(
        self,
        near_values: Tensor,
        far_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        front_end_strength: Tensor | None = None,
        has_far: Tensor | None = None,
        spectrogram_masks: Tensor | None = None,
    ) -> AsdModelOutput:
        """Return the embeddings of a batch of clips.

        Args:
            near_values: (batch, num_samples) float32 in [-1, 1], padded at the end.
            far_values: The far microphone, same shape and clock; a clip of zeros has none. None:
                no clip has one.
            attention_mask: (batch, num_samples), 1 = sound, then 0 = padding. None: no padding.
            front_end_strength: (batch,) in [0, 1], how much of the front end's change is made to
                each clip; at 0 the encoder hears near. None = 1.
            has_far: (batch,) bool, as AsdFeatureExtractor returns it. Only read where the far
                channel is encoded: silence in place of a missing microphone is refused; a
                noise-aware encoder hears such a clip by near alone.
            spectrogram_masks: (batch, 4), as `mask_spectrogram` takes them; for training. The same
                of every channel that is encoded.

        Raises:
            ValueError: The far channel is to be encoded and missing, shapes differ, or a clip is
                shorter than one patch.
        """
        return self.embed(
            self.hear(
                near_values,
                far_values,
                attention_mask,
                front_end_strength,
                has_far,
                spectrogram_masks,
            )
        )

    def hear(
        self,
        near_values: Tensor,
        far_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        front_end_strength: Tensor | None = None,
        has_far: Tensor | None = None,
        spectrogram_masks: Tensor | None = None,
    ) -> dict[str, list[HeardLayer]]:
        """Return what the encoder makes of each channel it hears, a `HeardLayer` per scored layer.

        Args and errors are `forward`'s; `embed` makes its output of the result.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(near_values, dtype=torch.long)
        if "far" in self.heard_channels:
            check_far(far_values, has_far)
        waveforms = self.waveforms(near_values, far_values, attention_mask, front_end_strength)
        beside = self.heard_beside(waveforms, has_far)
        return {
            name: self.encode(
                waveforms[name],
                attention_mask,
                spectrogram_masks,
                beside={} if name == "far" else beside,
            )
            for name in self.heard_channels
        }

    def embed(self, heard: Mapping[str, list[HeardLayer]]) -> AsdModelOutput:
        """Return the embeddings of what `hear` returned."""
        pooled = self.pool(heard, self.pooling)
        if self.config.join_bands:
            pooled = pooled.flatten(2)[:, :, None]  # (B, views, 1, bands * D)
        projected = self.projection(pooled)
        scored = pooled if self.config.scored_embedding == "pooled" else projected
        if self.scored_pooling is not None:
            scored = self.pool(heard, self.scored_pooling)
        return AsdModelOutput(embedding=scored, projected_embedding=projected)

    @property
    def reads_far(self) -> bool:
        """Whether the encoder hears far beside near: it is a noise-aware one."""
        return isinstance(self.encoder, NoiseAwareModel)

    @property
    def heard_channels(self) -> list[str]:
        """Names of what is encoded, each once."""
        return list(dict.fromkeys(name for c in self.config.channels for name in CHANNELS[c]))

    def heard_beside(
        self, waveforms: Mapping[str, Tensor], has_far: Tensor | None
    ) -> dict[str, Tensor]:
        """Return what a noise-aware encoder takes beside near; nothing for other encoders.

        Args:
            waveforms: What `waveforms` returns.
            has_far: (batch,), whether a clip has a far channel; None looks for sound in it.
        """
        far = waveforms.get("far") if self.reads_far else None
        if far is None:
            return {}
        there = far.any(dim=1)  # as for a front end: a clip of zeros has none
        return {"far_values": far, "has_far": there if has_far is None else there & has_far}

    def waveforms(
        self,
        near: Tensor,
        far: Tensor | None,
        attention_mask: Tensor,
        front_end_strength: Tensor | None,
    ) -> dict[str, Tensor]:
        """Return what the encoder may hear of each channel, (batch, num_samples) float32.

        Zero behind each clip's end.
        """
        if any(x is not None and x.shape != near.shape for x in (far, attention_mask)):
            raise ValueError(
                f"near_values {tuple(near.shape)}, far_values "
                f"{None if far is None else tuple(far.shape)} and attention_mask "
                f"{tuple(attention_mask.shape)} must have one shape. AsdFeatureExtractor pads a "
                "batch so."
            )
        padding = attention_mask == 0
        near = near.float().masked_fill(padding, 0.0)
        if far is None:
            return {"near": near, "unprocessed": near}
        far = far.float().masked_fill(padding, 0.0)
        cleaned = self.front_end(near, far, (~padding).sum(dim=1))
        strength = far.any(dim=1).to(near.dtype)  # no far, no change
        if front_end_strength is not None:
            strength = strength * front_end_strength.to(near)
        # lerp is exact at both ends.
        processed = torch.lerp(near, cleaned, strength[:, None])
        return {"near": processed, "unprocessed": near, "far": far}

    def encode(
        self,
        waveform: Tensor,
        attention_mask: Tensor,
        spectrogram_masks: Tensor | None = None,
        *,
        beside: Mapping[str, Tensor] | None = None,
    ) -> list[HeardLayer]:
        """Return what the encoder makes of one channel, for each scored layer.

        A noise-aware encoder takes `heard_beside`, too.
        """
        grid = self.encoder.patch_grid(waveform.shape[1])
        inputs = {"input_values": waveform, **(beside or {})}
        if spectrogram_masks is not None:
            patch_size: Any = self.encoder.config.patch_size
            own = self.encoder.patch_mask(attention_mask).sum(dim=1)  # (B,) patches
            num_frames = patch_size * own // grid[1]
            inputs = {
                name.replace("values", "features"): mask_spectrogram(
                    self.encoder.spectrogram(x, attention_mask), num_frames, spectrogram_masks
                )
                if name.endswith("values")
                else x
                for name, x in inputs.items()
            }
        return self.encode_inputs(inputs, attention_mask, grid)

    def encode_inputs(
        self, inputs: Mapping[str, Tensor], attention_mask: Tensor, grid: tuple[int, int]
    ) -> list[HeardLayer]:
        """Return what the encoder makes of waveforms or spectrograms, for each scored layer.

        Args:
            inputs: `input_values` or `input_features`, as the encoder takes them.
            attention_mask: (batch, num_samples).
            grid: (time, band) of the patches.
        """
        deepest = max(self.layers)  # no encoder has a norm or anything else behind its last layer
        patch_mask = self.encoder.patch_mask(attention_mask)  # (B, patches)
        output = self.encoder(
            **inputs,
            attention_mask=attention_mask,
            output_hidden_states=any(layer != deepest for layer in self.layers),
        )
        heard = []
        for layer in self.layers:
            last = layer == deepest
            hidden_states = output.last_hidden_state if last else output.hidden_states[layer]
            class_tokens, patches = self.encoder.split(hidden_states)
            heard.append(HeardLayer(patches, patch_mask, grid, class_tokens))
        return heard

    def pool(
        self,
        heard: Mapping[str, list[HeardLayer]],
        pooling: Pooling,
    ) -> Tensor:
        """Return the embeddings (batch, views, bands, D) of all scored channels and layers.

        Args:
            heard: What `hear` returns.
            pooling: Of one layer.
        """
        pooled = {  # (B, layers, bands, D) each
            name: torch.stack([pooling(*layer) for layer in layers], dim=1)
            for name, layers in heard.items()
        }
        if "residual" in self.config.channels:
            pooled["residual"] = pooled["near"] - self.config.residual_weight * pooled["far"]
        return torch.cat([pooled[name] for name in self.config.channels], dim=1)


class Projection(nn.Module):
    """What stands between pooling and head; the same for each view and band.

    Args:
        config: Its `projection`, `projection_size` and `projection_dropout` are read.
        input_size: Size of a pooled embedding.

    Attributes:
        output_size: Size of a projected embedding.
    """

    def __init__(self, config: AsdConfig, input_size: int) -> None:
        super().__init__()
        linear = config.projection != "none"
        self.output_size = (linear and config.projection_size) or input_size
        self.norm = nn.BatchNorm1d(input_size) if config.projection == "batch_norm_linear" else None
        self.dropout = nn.Dropout(config.projection_dropout)
        self.linear = nn.Linear(input_size, self.output_size) if linear else None

    def forward(self, embedding: Tensor) -> Tensor:
        """Map (batch, views, bands, D) to (batch, views, bands, output_size)."""
        if self.linear is None:
            return embedding
        projected = embedding.flatten(0, 2).to(self.linear.weight.dtype)  # (B * views * bands, D)
        if self.norm is not None:
            projected = self.norm(projected)
        projected = self.linear(self.dropout(projected))
        shaped: Tensor = projected.unflatten(0, embedding.shape[:3])
        return shaped


class AsdForProxyClassification(AsdPreTrainedModel):
    """An `AsdModel` and the head that trains it by telling apart proxy classes of normal clips.

    Attributes:
        domain_adversary: Classifier of the domain, None unless `config.adversaries` has it.
        channel_adversary: Classifier of the channel, likewise.
        progress: Share of the training that is done, from 0 to 1; adversaries grow with it.
    """

    def __init__(self, config: AsdConfig) -> None:
        super().__init__(config)
        self.asd = AsdModel(config)
        num_classes: Any = config.num_labels  # its type leaves None open
        size = self.asd.projection.output_size
        self.head = HEADS[config.head](size, num_classes, **(config.head_options or {}))
        self.domain_adversary = self.build_adversary("domain", size)
        self.channel_adversary = self.build_adversary("channel", size)
        self.progress = 0.0
        self.post_init()

    def build_adversary(self, name: str, size: int) -> Adversary | None:
        """Return one of the config's adversaries of embeddings of a size, or None."""
        if name not in self.config.adversaries:
            return None
        return ADVERSARIES[name](size, **(self.config.adversary_options or {}))

    def set_progress(self, progress: float) -> None:
        """Say which share of the training is done, from 0 to 1; the training loop calls it."""
        self.progress = progress

    @can_return_tuple  # type: ignore[untyped-decorator]  # transformers' own
    def forward(
        self,
        near_values: Tensor,
        far_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        front_end_strength: Tensor | None = None,
        labels: Tensor | None = None,
        domain_labels: Tensor | None = None,
        has_far: Tensor | None = None,
        spectrogram_masks: Tensor | None = None,
    ) -> AsdOutput:
        """Return loss, logits and embeddings of a batch of clips.

        Args:
            near_values: As `AsdModel`'s, like the three after it.
            far_values: (batch, num_samples) or None.
            attention_mask: (batch, num_samples) or None.
            front_end_strength: (batch,) or None.
            labels: (batch,) int64 proxy classes, or (batch, num_labels) soft ones in [0, 1].
            domain_labels: (batch,) int64, 0 = source, 1 = target, -1 = unknown. Only a domain
                adversary reads them; it needs them beside labels.
            has_far: (batch,) bool or None, as `AsdModel`'s.
            spectrogram_masks: (batch, 4) or None, as `AsdModel`'s.

        Raises:
            ValueError: Labels do not fit, or an adversary's are missing; or as `AsdModel`.
        """
        output = self.asd(
            near_values,
            far_values,
            attention_mask,
            front_end_strength,
            has_far,
            spectrogram_masks,
        )
        projected = output.projected_embedding
        logits, loss = self.head(projected.mean(dim=(1, 2)), labels)
        if loss is not None:
            loss = sum(self.adversarial_losses(projected, domain_labels), start=loss)
        return AsdOutput(loss=loss, logits=logits, embedding=output.embedding)

    def adversarial_losses(self, projected: Tensor, domain_labels: Tensor | None) -> list[Tensor]:
        """Return the loss of each adversary of projected embeddings (batch, views, bands, size)."""
        strength = reversal_strength(self.progress)
        losses = []
        if self.domain_adversary is not None:
            if domain_labels is None:
                raise ValueError(
                    "This model's config.adversaries has 'domain', but domain_labels is missing. "
                    "Pass 0 for source, 1 for target and -1 for unknown."
                )
            losses.append(
                self.domain_adversary(projected.mean(dim=(1, 2)), domain_labels, strength)
            )
        if self.channel_adversary is not None:
            # Views are ordered by channel, then by layer: (B, 2, layers, bands, size) -> (B, 2, D)
            channels = projected.unflatten(1, (2, -1)).mean(dim=(2, 3))
            far = torch.tensor([channel == "far" for channel in self.config.channels])
            labels = far.to(projected.device, torch.long).repeat(len(projected))
            losses.append(self.channel_adversary(channels.flatten(0, 1), labels, strength))
        return losses


AsdModel.register_for_auto_class("AutoModel")
AsdForProxyClassification.register_for_auto_class("AutoModelForAudioClassification")

__all__ = [
    "ENCODERS",
    "LORA_MODULES_TO_SAVE",
    "LORA_TARGET_MODULES",
    "AsdForProxyClassification",
    "AsdModel",
    "AsdModelOutput",
    "AsdOutput",
    "AsdPreTrainedModel",
]
