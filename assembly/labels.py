"""The proxy classes that a recipe asks for."""

import logging
from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from torch import nn

from assembly.embedding import Embedder
from assembly.models import asd_config, untrained
from modeling import AsdModel
from nearfar.proxy_labels import ProxyLabels, pseudo_attributes
from nearfar.training_arguments import TrainArguments

logger = logging.getLogger(__name__)


def make_labels(
    args: TrainArguments,
    encoder: nn.Module,
    references: Dataset,
    rows: Sequence[dict[str, Any]],
    embedder: Embedder,
) -> ProxyLabels:
    """Return the proxy classes, with clusters of frozen embeddings where they are asked for."""
    items = [row | {"channel": channel} for channel in args.train_channels for row in rows]
    labels = ProxyLabels.from_clips(items, parts=args.label_parts)
    single = labels.num_classes < 2
    if not args.no_training and single and args.pseudo_labels == "never":
        raise ValueError(
            f"All {len(rows)} training clips are in one proxy class ({labels.class_names[0]}), so "
            "there is nothing to tell apart. Allow --pseudo_labels single_class, or score the "
            "encoder as it is with --no_training."
        )
    wanted = single if args.pseudo_labels == "single_class" else args.pseudo_labels != "never"
    if args.pseudo_label_epochs is not None and not wanted:
        raise ValueError(
            f"pseudo_label_epochs={args.pseudo_label_epochs} renews pseudo labels, but with "
            f"pseudo_labels={args.pseudo_labels!r} there are none. Leave it out, or take "
            "missing_attributes."
        )
    if wanted and not args.no_training:
        frozen = AsdModel(untrained(asd_config(args, encoder, labels)))
        frozen.load_encoder(encoder)
        table = embedder(frozen, references, "pseudo labels")
        pseudo = pseudo_attributes(table, num_clusters=args.num_pseudo_labels, seed=args.seed)
        pseudo *= len(args.train_channels)
        labels = ProxyLabels.from_clips(items, parts=args.label_parts, pseudo_attributes=pseudo)
        logger.info("Pseudo labels: %d proxy classes.", labels.num_classes)
    if args.num_classes is not None and labels.num_classes != args.num_classes:
        raise ValueError(
            f"The recipe expects {args.num_classes} proxy classes, but the clips have "
            f"{labels.num_classes}. Check data_dir, year and train_subsets, or give "
            "--num_classes none."
        )
    return labels
