"""The encoders at other precisions than plain float32, and what each costs in embeddings and score.

`python -m benchmarks.encoders --parts precision` measures them.
"""

import copy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao.nn.quantized.dynamic import Linear as DynamicLinear
from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic
from transformers import PreTrainedModel

from benchmarks.log_mel import nearest_neighbour_scores
from data_scripts.factory import simulate_factory
from data_scripts.near_far import decoded, load_near_far
from modeling import AsdConfig, AsdFeatureExtractor, AsdModel
from nearfar.embeddings import EmbeddingTable, extract_embeddings
from nearfar.evaluation import evaluate_scores

FACTORY = {
    "num_machines": 1,
    "source_train": 40,
    "target_train": 10,
    "test_per_group": 15,
    "seconds": 2.0,
}


class PerTokenLinear(nn.Module):
    """A linear map by an int8 product: a scale per output of the weight, and one per token.

    torch scales an int8 product's input as a whole, by its smallest and largest value, so that one
    token changes all others. Here each token is divided by its own peak, and two more inputs, -1
    and 1 with zero weights, make that common scale the same always.

    Args:
        linear: The map in float32.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        widened = nn.Linear(linear.in_features + 2, linear.out_features, bias=False)
        with torch.no_grad():
            widened.weight.copy_(F.pad(linear.weight, (0, 2)))
        product = nn.Sequential(widened)
        quantize_dynamic(product, {nn.Linear: per_channel_dynamic_qconfig}, inplace=True)
        self.product: DynamicLinear = product[0]
        self.bias = linear.bias

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        peak = inputs.abs().amax(dim=-1, keepdim=True).clamp_min(torch.finfo(inputs.dtype).tiny)
        scaled = inputs.new_ones(*inputs.shape[:-1], inputs.shape[-1] + 2)
        torch.div(inputs, peak, out=scaled[..., :-2])
        scaled[..., -2] = -1.0
        return torch.addcmul(self.bias, self.product(scaled), peak)


def to_int8(encoder: PreTrainedModel) -> PreTrainedModel:
    """Take the linear maps of all layers to int8, in place; BEATs' small gates stay as they are."""
    for layer in encoder.layers:
        for parent in (layer, layer.attention):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear) and name != "gate":
                    setattr(parent, name, PerTokenLinear(child))
    return encoder


def compiled(encoder: PreTrainedModel) -> PreTrainedModel:
    """Compile the forward pass, in place."""
    encoder.compile()
    return encoder


PRECISIONS: dict[str, Callable[[PreTrainedModel], PreTrainedModel]] = {
    "float32": lambda encoder: encoder,
    "compiled": compiled,
    "bfloat16": lambda encoder: encoder.to(torch.bfloat16),
    "int8": to_int8,
}


def measure_precisions(
    encoder: PreTrainedModel,
    *,
    time_in_turn: Callable[[Mapping[str, nn.Module]], dict[str, float]],
) -> list[dict[str, Any]]:
    """Return a row per precision: `seconds` per clip, `cosine`, `centred_cosine`, `official_score`.

    Both cosines are the least of all clips' with their embeddings in float32, mean over the
    patches; the second after the mean of all embeddings in float32 is taken away, so that what all
    clips share does not count. The score is of 1-NN on those embeddings, on one simulated machine.

    Args:
        encoder: In float32, for evaluation.
        time_in_turn: Returns the seconds per clip of each encoder, by name.
    """
    rows = []
    prepared = {name: prepare(copy.deepcopy(encoder)) for name, prepare in PRECISIONS.items()}
    exact = None
    model = AsdModel(AsdConfig(encoder_config=encoder.config))
    with tempfile.TemporaryDirectory() as folder:
        simulate_factory(Path(folder), seed=0, **FACTORY)
        clips = load_near_far(folder, year=2026, subsets=["dev"], cache_dir=f"{folder}/cache")
        for precision, model.encoder in prepared.items():
            tables = [embedded(model, clips[split]) for split in ("train", "test")]
            test = torch.from_numpy(tables[1].embedding.reshape(len(tables[1]), -1))
            exact = test if exact is None else exact  # float32 comes first
            shared = exact.mean(dim=0)
            scores = nearest_neighbour_scores(*tables, metric="cosine")
            rows.append(
                {
                    "precision": precision,
                    "cosine": least_cosine(test, exact),
                    "centred_cosine": least_cosine(test - shared, exact - shared),
                    "official_score": evaluate_scores(scores)["official_score"],
                }
            )
    times = time_in_turn(prepared)
    return [row | {"seconds": times[row["precision"]]} for row in rows]


def embedded(model: AsdModel, clips: Sequence[dict[str, Any]]) -> EmbeddingTable:
    """Return the embeddings of clips."""
    return extract_embeddings(
        model,
        decoded(clips),
        AsdFeatureExtractor(min_num_samples=model.encoder.num_samples_per_patch),
        batch_size=8,
        description="clips",
    )


def least_cosine(left: Tensor, right: Tensor) -> float:
    """Return the smallest cosine between the rows of two matrices."""
    return F.cosine_similarity(left, right, dim=1).min().item()


def format_precisions(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table; the rows of an encoder begin with float32."""
    lines = [
        f"{'encoder':<14}{'precision':<10}{'s/clip':>8}{'speed':>7}{'cosine':>10}{'centred':>10}"
        f"{'score':>8}{'change':>8}"
    ]
    for row in rows:
        if row["precision"] == "float32":
            exact = row
        lines.append(
            f"{row['encoder']:<14}{row['precision']:<10}{row['seconds']:>8.3f}"
            f"{exact['seconds'] / row['seconds']:>7.2f}{row['cosine']:>10.5f}"
            f"{row['centred_cosine']:>10.5f}{100 * row['official_score']:>8.2f}"
            f"{100 * (row['official_score'] - exact['official_score']):>+8.2f}"
        )
    return "\n".join(lines)
