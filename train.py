"""Fine-tune an encoder on normal recordings and write a complete detector.

accelerate launch train.py --recipe recipes/quickstart.yaml --data_dir DATA --output_dir runs/mine
"""

import copy
import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from numpy.typing import NDArray
from torch import nn
from transformers import AutoConfig
from transformers.utils import is_peft_available

from data_scripts.near_far import decoded, known, load_near_far
from modeling import (
    ENCODERS,
    FRONT_ENDS,
    LORA_MODULES_TO_SAVE,
    LORA_TARGET_MODULES,
    POOLINGS,
    AsdConfig,
    AsdFeatureExtractor,
    AsdForProxyClassification,
    AsdModel,
    AutoencoderConfig,
    AutoencoderModel,
    BandMeans,
    ReconstructionNetwork,
    ReferenceBank,
    ThresholdName,
    encoder_fingerprint,
)
from modeling.calibration import check_rule
from modeling.configuration_asd import CHANNELS
from modeling.convert_original import load_original
from nearfar.arguments import changed_names, check_names, parse_arguments, script
from nearfar.autoencoder_training import saved_states, train_autoencoders
from nearfar.checkpoints import asked_checkpoint
from nearfar.embeddings import EmbeddingTable, extract_embeddings
from nearfar.guard import GuardDecision, fit_guard
from nearfar.hub import write_run
from nearfar.proxy_labels import PARTS, ProxyLabels, pseudo_attributes, renewed_labels
from nearfar.schema import DOMAINS
from nearfar.splits import held_out_rows, spread_rows, validation_rows
from nearfar.trackers import JsonLinesTracker
from nearfar.training import train
from nearfar.training_clips import TRAIN_CHANNELS, LabelledClips
from nearfar.training_options import TrainingOptions, check_training

if TYPE_CHECKING:
    from peft import PeftModel  # of the extra "train"

logger = logging.getLogger("nearfar.train")

PROFILE_CLIPS = 50  # references whose mean an anomaly map compares with, per machine
LOCAL_ARGUMENTS = (
    "recipe",
    "data_dir",
    "output_dir",
    "resume_from_checkpoint",
    "report_to",
    "num_proc",
)
# What kind "autoencoder" reads beside LOCAL_ARGUMENTS.
AUTOENCODER_ARGUMENTS = (
    *("kind", "autoencoder_config", "year", "train_subsets", "machine_types", "resample"),
    *("channels", "peak_normalize", "held_out_share", "threshold", "threshold_quantile"),
    *("num_train_epochs", "train_batch_size", "learning_rate", "validation_share", "seed"),
    *("deterministic", "extraction_batch_size", "dataloader_num_workers"),
)


@dataclass(kw_only=True)
class TrainArguments(TrainingOptions):
    """Arguments of train.py; a recipe gives any of them, the command line wins."""

    recipe: Path | None = field(default=None, metadata={"help": "YAML with values for all this."})
    data_dir: Path = field(metadata={"help": "Recordings in the official layout."})
    output_dir: Path = field(metadata={"help": "The run folder to write."})
    year: int = field(default=2026, metadata={"help": "Of the recordings; names differ by year."})
    train_subsets: list[str] = field(
        default_factory=lambda: ["dev"], metadata={"help": "Any of dev, eval_train."}
    )
    machine_types: list[str] | None = field(default=None, metadata={"help": "None takes all."})
    resample: bool = field(default=False, metadata={"help": "Resample clips of other rates."})
    num_proc: int | None = field(default=None, metadata={"help": "Processes that prepare data."})

    kind: Literal["model", "autoencoder"] = field(
        default="model", metadata={"help": "autoencoder: an official baseline, see its recipes."}
    )
    autoencoder_config: dict | str | None = field(
        default=None, metadata={"help": "Of kind autoencoder, as JSON: scoring, sizes."}
    )
    encoder_checkpoint: Path | None = field(
        default=None, metadata={"help": "The authors' .pt, or a folder; None starts from scratch."}
    )
    encoder_type: str | None = field(
        default=None, metadata={"help": "The model_type that a recipe is made for; no other runs."}
    )
    encoder_config: dict | str | None = field(
        default=None, metadata={"help": "Of an encoder from scratch, as JSON; with its model_type."}
    )
    front_end: str = "near"
    front_end_options: dict | str | None = None
    guard: Literal["none", "fitted"] = field(
        default="none",
        metadata={"help": "fitted: the front end goes only where its references say it helps."},
    )
    channels: list[str] = field(
        default_factory=lambda: ["near"],
        metadata={"help": f"Scored, a view each; any of {', '.join(CHANNELS)}."},
    )
    residual_weight: float = field(
        default=0.5, metadata={"help": "Of far's embedding in channel residual."}
    )
    layers: list[int] | None = field(default=None, metadata={"help": "Scored; None is the last."})
    pooling: str = "mean"
    pooling_options: dict | str | None = None
    join_bands: bool = False
    projection: str = "none"
    projection_size: int | None = None
    projection_dropout: float = 0.0
    scored_embedding: str = "pooled"
    scored_pooling: str | None = None
    scored_pooling_options: dict | str | None = None
    head: str = "arcface"
    head_options: dict | str | None = None
    adversaries: list[str] = field(
        default_factory=list, metadata={"help": "Any of domain, channel: what training unlearns."}
    )
    adversary_options: dict | str | None = None
    detector: str = "knn"
    detector_options: dict | str | None = None
    peak_normalize: bool = field(
        default=False, metadata={"help": "Scale both channels jointly to a peak of 1."}
    )

    train_channels: list[str] = field(
        default_factory=lambda: ["near"],
        metadata={"help": "Heard in training, each clip once in each: near, far, or both."},
    )
    label_parts: list[str] = field(
        default_factory=lambda: list(PARTS),
        metadata={
            "help": "What makes a proxy class: machine, machine_type, attributes, domain, channel; "
            "or section, attribute, composite, which name the usual combinations."
        },
    )
    pseudo_labels: Literal["never", "single_class", "missing_attributes"] = field(
        default="single_class", metadata={"help": "When k-means stands in for attributes."}
    )
    num_pseudo_labels: list[int] = field(
        default_factory=lambda: [8],
        metadata={"help": "Clusters per machine and domain; of several the best by silhouette."},
    )
    num_classes: int | None = field(
        default=None, metadata={"help": "Stop unless there are so many proxy classes."}
    )
    no_training: bool = field(default=False, metadata={"help": "Score the encoder as it is."})
    trainable_layers: int | None = field(
        default=None, metadata={"help": "Train (LoRA: adapt) the last ones; 0 none, None all."}
    )
    lora_rank: int | None = field(
        default=None, metadata={"help": "Train PEFT's LoRA adapters of this rank; None: no LoRA."}
    )
    lora_alpha: int | None = field(
        default=None, metadata={"help": "Adapters count alpha / rank times; None is the rank."}
    )
    lora_dropout: float = field(default=0.0, metadata={"help": "Before each adapter."})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Maps with an adapter; None: all linear ones of a layer."}
    )
    held_out_share: float = field(
        default=0.1, metadata={"help": "Normal clips kept back for thresholds."}
    )
    threshold: ThresholdName = field(
        default="percentile", metadata={"help": "percentile, or gamma (positive scores only)."}
    )
    threshold_quantile: float = field(
        default=0.9, metadata={"help": "Share of normal clips below a threshold."}
    )
    deterministic: bool = field(
        default=False, metadata={"help": "Refuse what a GPU does not do twice in the same way."}
    )
    activation_checkpointing: bool = field(
        default=False, metadata={"help": "Trade time for memory in training."}
    )
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    extraction_batch_size: int = field(default=16, metadata={"help": "Clips embedded at once."})
    report_to: list[str] = field(
        default_factory=lambda: ["jsonl"], metadata={"help": "jsonl, and accelerate's trackers."}
    )
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "'latest', or a folder under trainer_state."}
    )

    @property
    def state_dir(self) -> Path:
        """Where training states are saved."""
        return self.output_dir / "trainer_state"


def main() -> None:
    """Read clips, train, fill the reference bank, write the run folder."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    args = parse_arguments(TrainArguments)
    check_kind(args)
    check_training(args)
    check_channels(args)
    check_lora(args)
    check_guard(args)
    check_rule(args.threshold, args.threshold_quantile)  # before training, not after it
    accelerator = build_accelerator(args)
    seed_all(args)
    clips = load_clips(args, accelerator)
    rows = known(clips)
    machines, domains = [row["machine"] for row in rows], [row["domain"] for row in rows]
    held_out = held_out_rows(machines, domains, share=args.held_out_share, seed=args.seed)
    references, calibration = clips.select((~held_out).nonzero()[0]), held_out.nonzero()[0]
    reference_rows = [row for row, held in zip(rows, held_out, strict=True) if not held]
    held_back = clips.select(calibration) if len(calibration) else None
    if args.kind == "autoencoder":
        model, feature_extractor = fit_autoencoders(args, references, reference_rows, accelerator)
        parts = model, feature_extractor, references, held_back
        write_detector(args, accelerator, *parts, guard={})
        return
    encoder = build_encoder(args)
    feature_extractor = AsdFeatureExtractor(
        sampling_rate=encoder.config.sampling_rate,
        min_num_samples=encoder.num_samples_per_patch,
        peak_normalize=args.peak_normalize,
    )
    guard = guard_machines(args, references, feature_extractor, accelerator)
    strengths = strengths_of(guard)
    labels = make_labels(
        args, encoder, references, reference_rows, feature_extractor, strengths, accelerator
    )
    model = build_model(args, encoder, labels)
    validation_share = 0.0 if args.no_training else args.validation_share
    judging = validation_rows(
        labels.labels[: len(references)], share=validation_share, seed=args.seed
    )
    adapter = None
    if not args.no_training:
        model, adapter = fine_tune(
            model,
            references,
            reference_rows,
            labels,
            judging,
            feature_extractor,
            strengths,
            args,
            accelerator,
        )
    write_detector(
        args,
        accelerator,
        model,
        feature_extractor,
        references,
        held_back,
        guard=guard,
        num_classes=labels.num_classes,
        num_validation=int(judging.sum()),
        adapter=adapter,
    )


def write_detector(
    args: TrainArguments,
    accelerator: Accelerator,
    model: AsdForProxyClassification | AutoencoderModel,
    feature_extractor: AsdFeatureExtractor,
    references: Any,  # noqa: ANN401 - a Dataset
    held_back: Any,  # noqa: ANN401 - the calibration clips, a Dataset; None without
    *,
    guard: Mapping[str, GuardDecision],
    num_classes: int | None = None,
    num_validation: int = 0,
    adapter: "PeftModel | None" = None,
) -> None:
    """Fill the reference bank, calibrate it, and write the run folder."""
    strengths = strengths_of(guard)
    embedded = partial(
        embed, args, accelerator, model.base_model, feature_extractor, strengths=strengths
    )
    table = embedded(references, description="references")
    calibrating = None if held_back is None else embedded(held_back, description="calibration")
    profiles = None
    if args.kind == "model":
        some = references.select(spread_rows(table.machines, per_machine=PROFILE_CLIPS))
        means = BandMeans(model), feature_extractor
        profiles = embed(
            args, accelerator, *means, some, strengths=strengths, description="profiles"
        )
    model.to("cpu")
    bank = ReferenceBank(
        model.config,
        fingerprint=encoder_fingerprint(model.base_model),
        guard=strengths,
        threshold=args.threshold,
        threshold_quantile=args.threshold_quantile,
    ).fit(table, calibration=calibrating, frozen_encoder=args.no_training)
    if profiles is not None:
        bank.keep_profiles(profiles)
    if accelerator.is_main_process:
        write_run(
            args.output_dir,
            model=model,
            feature_extractor=feature_extractor,
            bank=bank,
            recipe=resolved_recipe(args),
            metrics={
                "official_score": None,  # score.py gives it
                "machines": {},
                "seed": args.seed,
                "recipe": args.recipe.stem if args.recipe else None,
                "frozen_encoder": args.no_training,
                "guard": {name: decision._asdict() for name, decision in guard.items()} or None,
                "num_classes": num_classes,
                "num_references": len(references),
                "num_validation": num_validation,
                "num_calibration": 0 if held_back is None else len(held_back),
                "num_parameters": sum(p.numel() for p in model.parameters()),
            },
            thresholds={name: bank.threshold(name) for name in bank.machines},
            kind=args.kind,
            adapter=adapter,
        )
        print(f"{args.output_dir}: {len(bank.machines)} machines, {len(references)} references")  # noqa: T201 - the script's answer
    accelerator.end_training()


def embed(
    args: TrainArguments,
    accelerator: Accelerator,
    model: nn.Module,
    feature_extractor: AsdFeatureExtractor,
    clips: Any,  # noqa: ANN401 - a Dataset
    *,
    strengths: Mapping[str, float],
    description: str,
) -> EmbeddingTable:
    """Return the embeddings of clips, as the arguments want them computed."""
    return extract_embeddings(
        model,
        decoded(clips),
        feature_extractor,
        batch_size=args.extraction_batch_size,
        accelerator=accelerator,
        front_end_strength=strengths,
        num_workers=args.dataloader_num_workers,
        description=description,
    )


def check_kind(args: TrainArguments) -> None:
    """Raise ValueError where an argument was given that the kind of the system does not read."""
    if args.kind == "autoencoder":
        read = {*LOCAL_ARGUMENTS, *AUTOENCODER_ARGUMENTS}
        unread = [name for name in changed_names(args) if name not in read]
    else:
        unread = [name for name in changed_names(args) if name == "autoencoder_config"]
    if unread:
        raise ValueError(f"kind={args.kind!r} does not read {unread}. Leave them out.")


def check_channels(args: TrainArguments) -> None:
    """Raise ValueError where training cannot hear the channels asked for."""
    check_names("train_channels", args.train_channels, TRAIN_CHANNELS)
    if not args.train_channels or len(set(args.train_channels)) < len(args.train_channels):
        raise ValueError(f"train_channels={args.train_channels} must name channels, each once.")
    if "far" in args.train_channels and (args.front_end != "near" or args.channels != ["near"]):
        raise ValueError(
            f"train_channels={args.train_channels} lets far be heard in place of near, which "
            f"front_end={args.front_end!r} and channels={args.channels} do not allow. Take "
            "front_end='near' and channels=['near'], or train on near."
        )


def check_lora(args: TrainArguments) -> None:
    """Raise ValueError where PEFT is missing, or LoRA's options make no sense together."""
    if args.lora_rank is None:
        options = ("lora_alpha", "lora_dropout", "lora_target_modules")
        if given := [name for name in options if getattr(args, name)]:
            raise ValueError(f"{given} came without a lora_rank. Give one, or leave them out.")
        return
    if args.lora_rank < 1:
        raise ValueError(f"lora_rank={args.lora_rank} must be at least 1, or none for no LoRA.")
    if args.trainable_layers == 0:
        raise ValueError(
            f"trainable_layers=0 leaves no layer for the adapters of lora_rank={args.lora_rank}. "
            "Give at least 1, or none for all layers."
        )
    if not is_peft_available():
        raise ValueError("lora_rank needs the package peft: pip install 'nearfar[train]'.")


def check_guard(args: TrainArguments) -> None:
    """Raise ValueError where there is no front end for the guard to judge."""
    if args.guard != "none" and args.front_end == "near":
        raise ValueError(
            f"guard={args.guard!r} judges a front end, but front_end='near' changes nothing. "
            "Choose a front end that uses far, or leave the guard out."
        )


def seed_all(args: TrainArguments) -> None:
    """Seed what draws at random, and make the rest repeatable if asked for."""
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS is refused
        torch.backends.cudnn.benchmark = False
    set_seed(args.seed, deterministic=args.deterministic)


def build_accelerator(args: TrainArguments) -> Accelerator:
    """Return an accelerator that splits each batch over the processes and logs to `report_to`."""
    trackers = [
        JsonLinesTracker(args.state_dir) if name == "jsonl" else name for name in args.report_to
    ]
    accelerator = Accelerator(
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        mixed_precision=args.mixed_precision,
        log_with=trackers,
        project_dir=args.state_dir,
        dataloader_config=DataLoaderConfiguration(split_batches=True, use_seedable_sampler=True),
    )
    missing = set(args.report_to) - {"jsonl"} - {str(tracker) for tracker in accelerator.log_with}
    if missing:
        raise ValueError(f"report_to: {sorted(missing)} cannot be used; is the package installed?")
    accelerator.init_trackers("nearfar", {"num_processes": accelerator.num_processes})
    logging.getLogger().setLevel(logging.INFO if accelerator.is_main_process else logging.ERROR)
    return accelerator


def load_clips(args: TrainArguments, accelerator: Accelerator) -> Any:  # noqa: ANN401 - a Dataset
    """Return the training clips; the main process prepares the cache, the others wait for it."""
    with accelerator.main_process_first():
        return load_near_far(
            args.data_dir,
            year=args.year,
            machine_types=args.machine_types,
            subsets=args.train_subsets,
            num_proc=args.num_proc,
            resample=args.resample,
        )["train"]


def build_encoder(args: TrainArguments) -> nn.Module:
    """Return the encoder that the recipe is made for."""
    due = args.encoder_type
    if due is not None and args.encoder_checkpoint is None and args.encoder_config is None:
        raise ValueError(
            f"This recipe takes a pre-trained encoder of type {due!r}, but encoder_checkpoint is "
            "missing. Give the authors' .pt file or a folder made by `python -m "
            "modeling.convert_original`; or encoder_config, for one from scratch."
        )
    encoder = load_encoder(args)
    if due is not None and encoder.config.model_type != due:
        raise ValueError(
            f"This recipe takes an encoder of type {due!r}, but encoder_checkpoint or "
            f"encoder_config gives a {encoder.config.model_type!r}. Give one of that type, or "
            "another recipe."
        )
    return encoder


def load_encoder(args: TrainArguments) -> Any:  # noqa: ANN401 - one of ENCODERS
    """Return the encoder: the authors' weights, those of a folder, or new ones."""
    path = args.encoder_checkpoint
    if path is None:
        config = dict(args.encoder_config or {"model_type": "nearfar_beats"})
        name = config.pop("model_type", "nearfar_beats")
        if name not in ENCODERS:
            raise ValueError(
                f"encoder_config: model_type={name!r} is not one of {sorted(ENCODERS)}."
            )
        return ENCODERS[name](AutoConfig.for_model(name, **config))
    if not path.exists():
        raise FileNotFoundError(
            f"There is no encoder checkpoint {path}. Give the authors' .pt file or a folder made "
            "by `python -m modeling.convert_original`."
        )
    if args.encoder_config is not None:
        raise ValueError("Give encoder_checkpoint or encoder_config, not both.")
    if path.is_file():
        return load_original(path)
    model_type = AutoConfig.from_pretrained(path).model_type
    if model_type not in ENCODERS:
        raise ValueError(f"{path} holds a {model_type!r}, not one of {sorted(ENCODERS)}.")
    encoder, found = ENCODERS[model_type].from_pretrained(path, output_loading_info=True)
    if missing := sorted(found["missing_keys"]):  # transformers gives them random values
        raise ValueError(f"{path} lacks {len(missing)} weights, {missing[0]!r} the first of them.")
    encoder.config.name_or_path = ""  # else a run folder's config.json would name the path
    return encoder


def guard_machines(
    args: TrainArguments,
    references: Any,  # noqa: ANN401 - a Dataset
    feature_extractor: AsdFeatureExtractor,
    accelerator: Accelerator,
) -> dict[str, GuardDecision]:
    """Return the guard's decision for each machine; none without a guard."""
    if args.guard == "none":
        return {}
    guard = fit_guard(
        FRONT_ENDS[args.front_end](**(args.front_end_options or {})),
        decoded(references),
        feature_extractor,
        batch_size=args.extraction_batch_size,
        accelerator=accelerator,
        num_workers=args.dataloader_num_workers,
    )
    for machine, decision in guard.items():
        logger.info("%s: front-end strength %g", machine, decision.strength)
    return guard


def strengths_of(guard: Mapping[str, GuardDecision]) -> dict[str, float]:
    """Return the front-end strength of each machine that the guard decided on."""
    return {machine: decision.strength for machine, decision in guard.items()}


def make_labels(
    args: TrainArguments,
    encoder: nn.Module,
    references: Any,  # noqa: ANN401 - a Dataset
    rows: Sequence[dict[str, Any]],
    feature_extractor: AsdFeatureExtractor,
    strengths: Mapping[str, float],
    accelerator: Accelerator,
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
        table = embed(
            args,
            accelerator,
            frozen,
            feature_extractor,
            references,
            strengths=strengths,
            description="pseudo labels",
        )
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


def asd_config(args: TrainArguments, encoder: nn.Module, labels: ProxyLabels) -> AsdConfig:
    """Return the model's configuration."""
    shared = {f.name for f in dataclasses.fields(args)} & {
        f.name for f in dataclasses.fields(AsdConfig)
    }
    values = {name: getattr(args, name) for name in sorted(shared - {"encoder_config"})}
    return AsdConfig(
        encoder_config=encoder.config,
        sampling_rate=encoder.config.sampling_rate,
        id2label=dict(enumerate(labels.class_names)),
        label2id={name: index for index, name in enumerate(labels.class_names)},
        **values,
    )


def untrained(config: AsdConfig) -> AsdConfig:
    """Return the configuration under which an encoder is embedded as it is, by no random weights.

    What would have to be trained is left out: the pooled embedding is scored, without a projection,
    and a pooling that has weights becomes the mean over the same bands. All else stays, also a
    `scored_pooling`, which never has weights.
    """
    config = copy.deepcopy(config)
    config.adversaries, config.adversary_options = (), None
    config.projection, config.projection_size, config.scored_embedding = "none", None, "pooled"
    options = config.pooling_options or {}
    if any(True for _ in POOLINGS[config.pooling](1, **options).parameters()):
        config.pooling = "mean"
        config.pooling_options = {"keep_bands": options.get("keep_bands", False)}
    return config


def build_model(
    args: TrainArguments, encoder: nn.Module, labels: ProxyLabels
) -> AsdForProxyClassification:
    """Return encoder and head."""
    config = asd_config(args, encoder, labels)
    model = AsdForProxyClassification(untrained(config) if args.no_training else config)
    model.asd.load_encoder(encoder)
    model.asd.freeze_layers(args.trainable_layers)
    return model


def with_lora(model: AsdForProxyClassification, args: TrainArguments) -> "PeftModel":
    """Return the model with adapters; they train, and what is new (`LORA_MODULES_TO_SAVE`).

    `trainable_layers` k puts adapters on the last k layers up to the deepest one scored.

    Raises:
        ValueError: A target is no linear map of the encoder's layers.
    """
    from peft import LoraConfig, get_peft_model  # an extra; `check_lora` has found it

    encoder: Any = model.asd.encoder
    targets = args.lora_target_modules or LORA_TARGET_MODULES[encoder.config.model_type]
    maps = {name for name, part in encoder.layers.named_modules() if isinstance(part, nn.Linear)}
    if unknown := [t for t in targets if not any(f".{m}".endswith(f".{t}") for m in maps)]:
        raise ValueError(
            f"lora_target_modules {unknown} are no linear maps of this encoder's layers, which "
            f"are {sorted({name.rpartition('.')[2] for name in maps})}."
        )
    built, last = len(encoder.layers), args.trainable_layers
    config = LoraConfig(
        r=args.lora_rank,
        lora_alpha=args.lora_alpha or args.lora_rank,
        lora_dropout=args.lora_dropout,
        target_modules=list(targets),
        layers_to_transform=None if last is None else list(range(built - last, built)),
        layers_pattern=None if last is None else "layers",
        modules_to_save=list(LORA_MODULES_TO_SAVE),
    )
    return get_peft_model(model, config)


def fine_tune(
    model: AsdForProxyClassification,
    references: Any,  # noqa: ANN401 - a Dataset
    rows: Sequence[dict[str, Any]],
    labels: ProxyLabels,
    judging: NDArray[np.bool_],
    feature_extractor: AsdFeatureExtractor,
    strengths: Mapping[str, float],
    args: TrainArguments,
    accelerator: Accelerator,
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
    clips = LabelledClips(decoded(references), labels.labels, rows, channels=args.train_channels)
    training_clips, validation = clips.take(~judging), clips.take(judging)
    logger.info(
        "%d training and %d validation clips in %d classes.",
        len(training_clips),
        len(validation),
        labels.num_classes,
    )
    network = model if args.lora_rank is None else with_lora(model, args)
    if args.activation_checkpointing:  # PEFT would look for token embeddings, were it on before
        model.activation_checkpointing_enable()
    trained = model.num_parameters(only_trainable=True)
    logger.info("%d of %d parameters train.", trained, model.num_parameters())

    def relabel(labels: Any) -> Any:  # noqa: ANN401 - arrays of int64
        table = embed(
            args,
            accelerator,
            model.asd,
            feature_extractor,
            references,
            strengths=strengths,
            description="pseudo labels",
        )
        return renewed_labels(table, labels, seed=args.seed)

    train(
        network,
        training_clips,
        feature_extractor,
        args,
        accelerator,
        state_dir=args.state_dir,
        front_end_strength=strengths,
        validation=validation if len(validation) else None,
        relabel=relabel if args.pseudo_label_epochs else None,
        resume_from=resume_from,
    )
    accelerator.free_memory()
    torch.cuda.empty_cache()
    if args.lora_rank is None:
        return model, None
    return copy.deepcopy(network).merge_and_unload(), network  # merging takes the adapter away


def fit_autoencoders(
    args: TrainArguments,
    references: Any,  # noqa: ANN401 - a Dataset
    rows: Sequence[dict[str, Any]],
    accelerator: Accelerator,
) -> tuple[AutoencoderModel, AsdFeatureExtractor]:
    """Train the networks of every machine, but for those of the states asked for."""
    resume_from = saved_states(args.state_dir, args.resume_from_checkpoint)
    options: Any = args.autoencoder_config or {}
    possible = set(AutoencoderConfig.__annotations__) - {"machines", "channels", "format_version"}
    if unknown := sorted(set(options) - possible):
        raise ValueError(f"autoencoder_config {unknown} are unknown; there are {sorted(possible)}.")
    machines = sorted({row["machine"] for row in rows})
    config = AutoencoderConfig(machines=machines, channels=args.channels, **options)
    model = AutoencoderModel(config)
    feature_extractor = AsdFeatureExtractor(
        sampling_rate=config.sampling_rate,
        min_num_samples=model.min_num_samples,
        peak_normalize=args.peak_normalize,
    )
    train_autoencoders(
        model,
        partial(ReconstructionNetwork, config),
        decoded(references),
        rows,
        feature_extractor,
        args,
        accelerator,
        extraction_batch_size=args.extraction_batch_size,
        state_dir=args.state_dir,
        resume_from=resume_from,
    )
    return model, feature_extractor


def resolved_recipe(args: TrainArguments) -> dict[str, Any]:
    """Return all arguments that are not of this machine, as plain values."""
    values = {
        f.name: getattr(args, f.name)
        for f in dataclasses.fields(args)
        if f.name not in LOCAL_ARGUMENTS
    }
    return {
        name: value.name if isinstance(value, Path) else value for name, value in values.items()
    }


if __name__ == "__main__":
    script(main)
