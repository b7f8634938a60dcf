"""The proxy classes that a recipe asks for."""

import logging
from collections.abc import Sequence, Set
from typing import Any

from torch import nn

from assembly.embedding import Embedder
from assembly.models import asd_config, untrained
from assembly.training_clips import Clips
from data_scripts.dcase import EDITIONS
from modeling import AsdModel
from nearfar.proxy_labels import ProxyLabels, pseudo_attributes
from nearfar.schema import machine_name
from nearfar.training_arguments import TrainArguments

logger = logging.getLogger(__name__)


def make_labels(
    args: TrainArguments,
    encoder: nn.Module,
    references: Clips,
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
        pseudo = pseudo_attributes(
            table,
            num_clusters=args.num_pseudo_labels,
            min_clips=args.min_pseudo_label_clips,
            seed=args.seed,
        )
        pseudo *= len(args.train_channels)
        labels = ProxyLabels.from_clips(items, parts=args.label_parts, pseudo_attributes=pseudo)
        logger.info("Pseudo labels: %d proxy classes.", labels.num_classes)
    check_num_classes(args, labels, {row["machine"] for row in rows})
    return labels


def check_num_classes(args: TrainArguments, labels: ProxyLabels, machines: Set[str]) -> None:
    """Raise ValueError where the recipe expects another number of proxy classes.

    Args:
        args: With `num_classes`, of any clips, and `num_classes_2026`, of all machines of 2026.
        labels: The classes.
        machines: Full names of the machines that are trained on.
    """
    expected = {"num_classes": args.num_classes}
    if machines == pool_of_2026() and not args.no_training:
        expected["num_classes_2026"] = args.num_classes_2026
    for name, due in expected.items():
        if due is not None and labels.num_classes != due:
            raise ValueError(
                f"The recipe expects {due} proxy classes ({name}), but the clips have "
                f"{labels.num_classes}. Check data_dir, year and train_subsets, and that the "
                f"recordings are complete; or give --{name} none."
            )


def pool_of_2026() -> set[str]:
    """Return the names of the twelve machines that the systems of 2026 are trained on."""
    edition = EDITIONS[2026]
    types = (*edition.dev_machines, *edition.eval_machines)
    return {machine_name(2026, machine_type, 0) for machine_type in types}
