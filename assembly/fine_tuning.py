"""From an untrained model and its clips to a fine-tuned one."""

import copy
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from assembly.embedding import Embedder
from assembly.models import with_lora
from assembly.training_clips import Clips
from modeling import AsdForProxyClassification
from nearfar.checkpoints import asked_checkpoint
from nearfar.proxy_labels import ProxyLabels, renewed_labels
from nearfar.schema import DOMAINS
from nearfar.training import train
from nearfar.training_arguments import TrainArguments
from nearfar.training_clips import LabelledClips

if TYPE_CHECKING:
    from peft import PeftModel  # of the extra "train"

logger = logging.getLogger(__name__)


def fine_tune(
    model: AsdForProxyClassification,
    references: Clips,
    rows: Sequence[dict[str, Any]],
    labels: ProxyLabels,
    judging: NDArray[np.bool_],
    embedder: Embedder,
    args: TrainArguments,
) -> "tuple[AsdForProxyClassification, PeftModel | None]":
    """Train from the state asked for; return the trained model and, with LoRA, its adapter.

    The clips of `judging` do not train, but may choose which weights to end with. The model's
    weights then hold what the adapter adds.
    """
    resume_from = asked_checkpoint(args.state_dir, args.resume_from_checkpoint)
    if model.domain_adversary is not None:
        domains = [row["domain"] for row in rows]
        counts: list[float] = [domains.count(domain) for domain in DOMAINS]
        if args.target_share is not None and min(counts):  # what is drawn counts, not what is there
            counts = [sum(counts) * (1 - args.target_share), sum(counts) * args.target_share]
        model.domain_adversary.balance(counts)
    clips = LabelledClips(references, labels.labels, rows, channels=args.train_channels)
    training_clips, validation = clips.take(~judging), clips.take(judging)
    logger.info(
        "%d training and %d validation clips in %d classes.",
        len(training_clips),
        len(validation),
        labels.num_classes,
    )
    if args.clip_memory_gib:
        training_clips.remember(args.clip_memory_gib)
    network: Any = model if args.lora_rank is None else with_lora(model, args)
    if args.activation_checkpointing:  # PEFT would look for token embeddings, were it on before
        model.activation_checkpointing_enable()
    trained = model.num_parameters(only_trainable=True)
    logger.info("%d of %d parameters train.", trained, model.num_parameters())

    def relabel(labels: NDArray[np.int64]) -> NDArray[np.int64]:
        return renewed_labels(
            embedder(model.asd, references, "pseudo labels"), labels, seed=args.seed
        )

    train(
        network,
        training_clips,
        embedder.feature_extractor,
        args,
        embedder.accelerator,
        state_dir=args.state_dir,
        front_end_strength=embedder.strengths,
        validation=validation if len(validation) else None,
        relabel=relabel if args.pseudo_label_epochs else None,
        resume_from=resume_from,
    )
    embedder.accelerator.free_memory()
    torch.cuda.empty_cache()
    if args.lora_rank is None:
        return model, None
    return copy.deepcopy(network).merge_and_unload(), network  # merging takes the adapter away
