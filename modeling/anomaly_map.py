"""Why a clip scores as it does: the share in its anomaly score of each piece of time and frequency.

Where embeddings are means of patches, and the score is a sum over the embedding (see
`Decomposition`), the map is exact: its cells add up to the score. With the embedding
z = a + sum_p L h_p / n, of n patches h_p,

    score = (z - o) . g = sum_p [ (h_p - q_p) . L'g / n  +  (a + L q - o) . g / n ],

for any q_p with mean q; o and g are those of the neighbours that the clip has as it is. As q_p the
mean patch of p's band over the machine's references is taken, its profile, so that a cell says how
its patch differs from what its band normally is; the second term, how the origin o differs from
the mean reference, is the same for all patches. Without a profile q = 0.

Elsewhere the map is made by occlusion: a cell's value is what the score loses when the cell is
replaced by something neutral, the profile or, without one, the clip's own mean in that band. A
steady fault is no deviation from the clip's own mean: only a profile can show it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from .detector_base import Decomposition, Detector
from .map_axes import MapAxes, patch_axes, patch_bins
from .pooling import HeardLayer, MeanPooling

Method = Literal["additive", "occlusion"]
Neutral = Literal["profile", "nearest", "clip", "reconstruction"]
Heard = Mapping[str, list[HeardLayer]]
Inputs = Mapping[str, Tensor | None]

MAX_CELLS = 128  # occluded before the encoder, each at the cost of an embedding
AT_ONCE = 16  # variants of a clip that are embedded together


@dataclass(frozen=True, eq=False)
class AnomalyMap:
    """The share of each cell in a clip's anomaly score.

    Attributes:
        values: (time, band) float64; what makes the clip anomalous is positive, what makes it
            normal negative.
        axes: Where the cells lie.
        method: "additive": the values add up to the score. "occlusion": a value is the score minus
            that of the clip without the cell.
        neutral: What a cell was compared with, or replaced by: its band's mean over the machine's
            references ("profile") or over the clip itself ("clip"); what the score compares the
            clip with, by bands where the detector has bands ("nearest"); an autoencoder's
            "reconstruction".
    """

    values: Tensor
    axes: MapAxes
    method: Method
    neutral: Neutral

    def as_dict(self) -> dict[str, Any]:
        """Return plain Python values, `values` as rows of bands."""
        described = {"values": self.values.tolist(), "method": self.method, "neutral": self.neutral}
        return described | self.axes._asdict()


class BandMeans(nn.Module):
    """What a machine's profile is made of: each clip's means, in the place of its embedding.

    Called like `AsdModel.forward`, it returns `embedding` (batch, streams, bands, size): the mean
    patch of each band of patches, a stream for each channel that is heard and each scored layer; or
    for a model that pools class tokens, which no patch is a share of, the mean spectrum
    (batch, channels, 1, bins). A profile is the mean over a machine's references.

    Args:
        model: An `AsdModel`, or a model on one.
    """

    def __init__(self, model: Any) -> None:  # noqa: ANN401  AsdModel imports this module
        super().__init__()
        self.asd = model.base_model

    def forward(self, **inputs: Any) -> ModelOutput:  # noqa: ANN401  AsdModel.forward's
        """Return a batch's means.

        The keyword arguments are those of `AsdModel.forward`, attention_mask among them.
        """
        if _scored_pooling(self.asd).reads_class_tokens:
            mask = inputs["attention_mask"]
            spectra = [
                mean_spectrum(self.asd, features, mask)
                for features in spectrograms(self.asd, inputs).values()
            ]
            means = torch.stack(spectra, dim=1)[:, :, None]
        else:
            layers = [layer for layers in self.asd.hear(**inputs).values() for layer in layers]
            by_band = MeanPooling(layers[0].patches.shape[-1], keep_bands=True)
            means = torch.stack([by_band(*layer) for layer in layers], dim=1)
        return ModelOutput(embedding=means)


@torch.no_grad()
def embedding_map(
    model: Any,  # noqa: ANN401  AsdModel imports this module
    inputs: Inputs,
    detector: Detector,
    profile: Tensor | None = None,
) -> AnomalyMap:
    """Return the map of one clip under an `AsdModel` and the detector of its machine.

    Args:
        model: In evaluation mode.
        inputs: What `AsdModel.forward` takes, of one clip without padding, with attention_mask.
        detector: Fitted on the machine's references.
        profile: The mean of `BandMeans` over the references, (streams, bands, size).

    Raises:
        ValueError: The profile is of another model, or as `AsdModel.forward`.
    """
    heard: Heard = model.hear(**inputs)
    embedding = model.embed(heard).embedding
    time, _ = next(iter(heard.values()))[0].grid
    pooling = _scored_pooling(model)
    _check_profile(model, profile, heard)
    if pooling.reads_class_tokens:
        values, edges = _occlude_cells(model, inputs, detector, embedding, profile)
        every = patch_axes(model.encoder, time)
        axes = every._replace(time_edges_seconds=[every.time_edges_seconds[i] for i in edges])
        return AnomalyMap(values, axes, "occlusion", "clip" if profile is None else "profile")
    axes = patch_axes(model.encoder, time)
    parts = detector.decompose(embedding) if isinstance(pooling, MeanPooling) else None
    if parts is None:
        values = _occlude_patches(model, heard, detector, embedding, profile)
        return AnomalyMap(values, axes, "occlusion", "clip" if profile is None else "profile")
    values, by_bands = _added(model, heard, parts, profile)
    neutral: Neutral = "nearest" if by_bands or profile is None else "profile"
    return AnomalyMap(values, axes, "additive", neutral)


def _scored_pooling(model: Any) -> Any:  # noqa: ANN401  a Pooling of an AsdModel
    return model.pooling if model.scored_pooling is None else model.scored_pooling


def _check_profile(model: Any, profile: Tensor | None, heard: Heard) -> None:  # noqa: ANN401
    layers = [layer for layers in heard.values() for layer in layers]
    due = (len(layers), layers[0].grid[1], layers[0].patches.shape[-1])
    if _scored_pooling(model).reads_class_tokens:
        due = (len(heard), 1, patch_bins(model.encoder)[-1])
    if profile is not None and tuple(profile.shape) != due:
        raise ValueError(
            f"The profile of normal clips has the shape {tuple(profile.shape)}, but this model's "
            f"is {due}. Learn it with this model."
        )


def _added(
    model: Any,  # noqa: ANN401  an AsdModel
    heard: Heard,
    parts: Decomposition,
    profile: Tensor | None,
) -> tuple[Tensor, bool]:
    """Return (time, band) shares whose sum is the score, and whether origins are by band.

    Views, as the config orders them, are sums of streams: the residual is near less a share of far.
    """
    config, scores_pooled = model.config, model.config.scored_embedding == "pooled"
    layers = [layer for layers in heard.values() for layer in layers]
    time, band = layers[0].grid
    patches = torch.cat([layer.patches for layer in layers]).cpu().double()  # (streams, P, D)
    patches = patches.unflatten(1, (time, band))
    means = patches.new_zeros(len(layers), band, patches.shape[-1])
    if profile is not None:
        means = profile.cpu().double()
    weights = _stream_weights(model, list(heard)).double()  # (views, streams)
    patches = torch.einsum("vs,stbd->vtbd", weights, patches)
    means = torch.einsum("vs,sbd->vbd", weights, means)
    origin, direction = parts  # (terms, views, bands, size)
    by_bands = _scored_pooling(model).keep_bands
    pooled = means if by_bands else means.mean(dim=1, keepdim=True)  # q
    joined = config.join_bands and model.scored_pooling is None
    if scores_pooled and joined:
        origin, direction = (part.unflatten(3, pooled.shape[1:])[:, :, 0] for part in parts)
        joined = False
    pulled, scored = direction, pooled  # L'g and a + L q
    if joined:
        scored = scored.flatten(1)[:, None]
    if not scores_pooled and model.projection.linear is not None:
        matrix, offset = _affine(model.projection)
        pulled, scored = direction @ matrix, scored @ matrix.T + offset
    if joined:
        pulled = pulled.unflatten(3, pooled.shape[1:])[:, :, 0]
    per_patch = pulled.sum(dim=0)[:, None]  # (views, 1, bands or 1, D)
    shares = ((patches - means[:, None]) * per_patch).sum(dim=(0, 3))  # (time, band)
    shares = shares / (time if by_bands else time * band)
    rest = ((scored - origin) * direction).sum(dim=(0, 1, 3))  # (bands or 1,)
    return shares + rest / (time * band / len(rest)), len(rest) > 1


def _stream_weights(model: Any, names: list[str]) -> Tensor:  # noqa: ANN401  an AsdModel
    """Return (views, streams): which streams a view is the sum of."""
    rows = []
    for channel in model.config.channels:
        row = [float(name == channel) for name in names]
        if channel == "residual":
            share = model.config.residual_weight
            row = [{"near": 1.0, "far": -share}.get(name, 0.0) for name in names]
        rows.append(row)
    return torch.kron(torch.tensor(rows), torch.eye(len(model.layers)))


def _affine(projection: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401  a Projection
    """Return the matrix (size, size') and the offset (size,) of a projection, float64."""
    matrix = projection.linear.weight.detach().cpu().double()
    offset = projection.linear.bias.detach().cpu().double()
    if projection.norm is not None:
        norm = projection.norm
        scale = (
            norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
        ).cpu()
        shift = norm.bias.detach().double().cpu() - norm.running_mean.double().cpu() * scale
        offset = offset + matrix @ shift
        matrix = matrix * scale
    return matrix, offset


def _occlude_patches(
    model: Any,  # noqa: ANN401  an AsdModel
    heard: Heard,
    detector: Detector,
    embedding: Tensor,
    profile: Tensor | None,
) -> Tensor:
    """Return (time, band): what the score loses with each patch behind the encoder."""
    time, band = next(iter(heard.values()))[0].grid
    if profile is None:
        streams = [layer.patches for layers in heard.values() for layer in layers]
        profile = torch.cat(streams).unflatten(1, (time, band)).mean(dim=1)

    def without(cells: Tensor) -> Tensor:
        variants: dict[str, list[HeardLayer]] = {}
        neutral = iter(profile)
        for name, layers in heard.items():
            variants[name] = []
            for layer in layers:
                patches = layer.patches.repeat(len(cells), 1, 1)
                mean = next(neutral).to(patches)  # (band, D)
                patches[torch.arange(len(cells)), cells] = mean[cells % band]
                beside = (layer.mask, layer.class_tokens)
                mask, tokens = (x.expand(len(cells), *x.shape[1:]) for x in beside)
                variants[name].append(HeardLayer(patches, mask, layer.grid, tokens))
        changed: Tensor = model.embed(variants).embedding
        return changed

    losses: Tensor = _losses(without, detector, embedding, time * band)
    by_cell: Tensor = losses.unflatten(0, (time, band))
    return by_cell


def _occlude_cells(
    model: Any,  # noqa: ANN401  an AsdModel
    inputs: Inputs,
    detector: Detector,
    embedding: Tensor,
    profile: Tensor | None,
) -> tuple[Tensor, list[int]]:
    """Return (cells along time, band): what the score loses with each cell of the spectrogram.

    And the cells' edges in patches: neighbours in time are occluded together where there would be
    more than `MAX_CELLS`.
    """
    mask: Any = inputs["attention_mask"]
    waveforms, bins = waveforms_of(model, inputs), patch_bins(model.encoder)
    whole = _spectra(model, waveforms, mask)
    beside = _spectra_beside(model, waveforms, inputs)
    grid = time, band = model.encoder.patch_grid(mask.shape[1])
    step = -(-time // max(1, MAX_CELLS // band))
    edges = [*range(0, time, step), time]
    if profile is None:
        spectra = [mean_spectrum(model, x, mask)[0] for x in whole.values()]
        profile = torch.stack(spectra)[:, None]
    size = model.encoder.config.patch_size
    last = len(edges) - 2  # its cells reach to the end of the spectrogram

    def without(cells: Tensor) -> Tensor:
        heard = {}
        for (name, features), spectrum in zip(whole.items(), profile[:, 0], strict=True):
            variants = features.repeat(len(cells), 1, 1)
            for variant, cell in zip(variants, cells.tolist(), strict=True):
                row, column = divmod(cell, band)
                end = None if row == last else size * edges[row + 1]
                columns = slice(bins[column], bins[column + 1])
                variant[size * edges[row] : end, columns] = spectrum[columns].to(variant)
            wide = mask.expand(len(cells), -1)
            also = {} if name == "far" else beside
            also = {key: x.expand(len(cells), *x.shape[1:]) for key, x in also.items()}
            heard[name] = model.encode_inputs({"input_features": variants, **also}, wide, grid)
        changed: Tensor = model.embed(heard).embedding
        return changed

    losses = _losses(without, detector, embedding, (last + 1) * band)
    return losses.unflatten(0, (last + 1, band)), edges


def _losses(
    without: Callable[[Tensor], Tensor], detector: Detector, embedding: Tensor, count: int
) -> Tensor:
    """Return (count,) float64: the score minus that of the clip without each cell.

    Args:
        without: Cells (n,) -> embeddings (n, views, bands, size).
        detector: Of the score.
        embedding: Of the whole clip.
        count: Of cells.
    """
    score = detector.anomaly_score(embedding).double()
    scores = [
        detector.anomaly_score(without(cells)).double()
        for cells in torch.arange(count).split(AT_ONCE)
    ]
    return score - torch.cat(scores)


def spectrograms(model: Any, inputs: Inputs) -> dict[str, Tensor]:  # noqa: ANN401  an AsdModel
    """Return what the encoder hears of each channel, (batch, frames, bins)."""
    return _spectra(model, waveforms_of(model, inputs), inputs["attention_mask"])


def waveforms_of(model: Any, inputs: Inputs) -> dict[str, Tensor]:  # noqa: ANN401  an AsdModel
    """Return what `AsdModel.waveforms` makes of the arguments of `AsdModel.forward`."""
    names = ("near_values", "far_values", "attention_mask", "front_end_strength")
    waveforms: dict[str, Tensor] = model.waveforms(*(inputs.get(name) for name in names))
    return waveforms


def _spectra(
    model: Any,  # noqa: ANN401  an AsdModel
    waveforms: Mapping[str, Tensor],
    mask: Tensor | None,
) -> dict[str, Tensor]:
    return {name: model.encoder.spectrogram(waveforms[name], mask) for name in model.heard_channels}


def _spectra_beside(
    model: Any,  # noqa: ANN401  an AsdModel
    waveforms: Mapping[str, Tensor],
    inputs: Inputs,
) -> dict[str, Tensor]:
    """Return what a noise-aware encoder takes beside near, as spectrograms."""
    beside = model.heard_beside(waveforms, inputs.get("has_far"))
    if not beside:
        return {}
    far = model.encoder.spectrogram(beside["far_values"], inputs["attention_mask"])
    return {"far_features": far, "has_far": beside["has_far"]}


def mean_spectrum(model: Any, features: Tensor, attention_mask: Tensor) -> Tensor:  # noqa: ANN401
    """Return the mean over each clip's own patches of sound, (batch, bins) float32."""
    _, band = model.encoder.patch_grid(attention_mask.shape[1])
    own = model.encoder.patch_mask(attention_mask)[:, ::band]  # (B, time)
    own = own.repeat_interleave(model.encoder.config.patch_size, dim=1)
    bins = patch_bins(model.encoder)[-1]
    heard = features[:, : own.shape[1], :bins].masked_fill(~own[..., None], 0.0)
    mean: Tensor = heard.sum(dim=1) / own.sum(dim=1, keepdim=True)
    return mean


__all__ = [
    "AnomalyMap",
    "BandMeans",
    "embedding_map",
    "mean_spectrum",
    "spectrograms",
    "waveforms_of",
]
