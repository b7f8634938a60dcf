"""Arguments of train.py, which of them make no sense together, and how a run folder keeps them."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from transformers.utils.import_utils import is_peft_available

from nearfar.arguments import changed_names, check_names, read_recipe
from nearfar.fusion_options import MemberOptions, WeightOptions
from nearfar.proxy_labels import PARTS
from nearfar.training_clips import TRAIN_CHANNELS
from nearfar.training_options import TrainingOptions, check_training

Options = dict | str  # type: ignore[type-arg] # a mapping, or JSON: HfArgumentParser knows no other spelling

LOCAL_ARGUMENTS = (
    "recipe",
    "data_dir",
    "output_dir",
    "resume_from_checkpoint",
    "report_to",
    "num_proc",
    "members_dir",
    "encoder_checkpoints",
    "push_to_hub",
    "hub_model_id",
    "hub_private_repo",
    "hub_token",
)
# What kind "autoencoder" reads beside LOCAL_ARGUMENTS.
AUTOENCODER_ARGUMENTS = (
    *("kind", "smoke", "autoencoder_config", "year", "train_subsets", "machine_types", "resample"),
    *("channels", "peak_normalize", "calibration", "held_out_share", "num_folds"),
    *("threshold", "threshold_quantile"),
    *("num_train_epochs", "train_batch_size", "learning_rate", "validation_share", "seed"),
    *("deterministic", "extraction_batch_size", "dataloader_num_workers", "data_license"),
)

# What the recipe of a fusion gives; all else is its members', in their recipes or overrides.
_MEMBERS = ("kind", "members", "encoder_configs")
_WEIGHTS = tuple(field.name for field in dataclasses.fields(WeightOptions))
FUSION_ARGUMENTS = {
    "fusion": (*_MEMBERS, *_WEIGHTS),
    "feature_fusion": (
        *(*_MEMBERS, "detector", "detector_options"),
        *("threshold", "threshold_quantile"),
    ),
}


@dataclass(kw_only=True)
class TrainArguments(TrainingOptions, MemberOptions):
    """Arguments of train.py; a recipe gives any of them, the command line wins."""

    recipe: Path | None = field(default=None, metadata={"help": "YAML with values for all this."})
    data_dir: Path | None = field(
        default=None,
        metadata={
            "help": "Recordings: official layout, published, or owner/name on the Hub. Needed but "
            "for --smoke."
        },
    )
    output_dir: Path = field(metadata={"help": "The run folder to write."})
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read published recordings pass by pass, in place of downloading them first."
        },
    )
    year: int = field(default=2026, metadata={"help": "Of the recordings; names differ by year."})
    train_subsets: list[str] = field(
        default_factory=lambda: ["dev"], metadata={"help": "Any of dev, eval_train."}
    )
    machine_types: list[str] | None = field(default=None, metadata={"help": "None takes all."})
    resample: bool = field(default=False, metadata={"help": "Resample clips of other rates."})
    num_proc: int | None = field(default=None, metadata={"help": "Processes that prepare data."})

    smoke: bool = field(
        default=False,
        metadata={"help": "Run the recipe at a tiny size, to see that it runs, and score it."},
    )

    kind: Literal["model", "autoencoder", "fusion", "feature_fusion"] = field(
        default="model",
        metadata={
            "help": "autoencoder: an official baseline; fusion: of members' scores; "
            "feature_fusion: of their embeddings. See the recipes."
        },
    )
    autoencoder_config: Options | None = field(
        default=None, metadata={"help": "Of kind autoencoder, as JSON: scoring, sizes."}
    )
    encoder_checkpoint: Path | None = field(
        default=None, metadata={"help": "The authors' .pt, or a folder; None starts from scratch."}
    )
    encoder_type: str | None = field(
        default=None, metadata={"help": "The model_type that a recipe is made for; no other runs."}
    )
    encoder_config: Options | None = field(
        default=None, metadata={"help": "Of an encoder from scratch, as JSON; with its model_type."}
    )
    front_end: str = "near"
    front_end_options: Options | None = None
    guard: Literal["none", "fitted"] = field(
        default="none",
        metadata={"help": "fitted: the front end goes only where its references say it helps."},
    )
    channels: list[str] = field(
        default_factory=lambda: ["near"],
        metadata={"help": "Scored, a view each; any of near, unprocessed, far, residual."},
    )
    residual_weight: float = field(
        default=0.5, metadata={"help": "Of far's embedding in channel residual."}
    )
    layers: list[int] | None = field(default=None, metadata={"help": "Scored; None is the last."})
    pooling: str = "mean"
    pooling_options: Options | None = None
    join_bands: bool = False
    projection: str = "none"
    projection_size: int | None = None
    projection_dropout: float = 0.0
    scored_embedding: str = "pooled"
    scored_pooling: str | None = None
    scored_pooling_options: Options | None = None
    head: str = "arcface"
    head_options: Options | None = None
    subcenters_without_attributes: int | None = field(
        default=None,
        metadata={
            "help": "Sub-centres of the classes of machines without attributes; the others have "
            "those of head_options."
        },
    )
    adversaries: list[str] = field(
        default_factory=list, metadata={"help": "Any of domain, channel: what training unlearns."}
    )
    adversary_options: Options | None = None
    detector: str = "knn"
    detector_options: Options | None = None
    clip_seconds: float | None = field(
        default=None,
        metadata={
            "help": "Every clip is cut, or filled up with zeros, to this length; None: heard whole."
        },
    )
    target_length: int | None = field(
        default=None,
        metadata={
            "help": "Frames that an EAT or FISHER cuts or fills clips to; None: whole clips."
        },
    )
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
    min_pseudo_label_clips: int = field(
        default=4, metadata={"help": "That such a cluster holds in the mean, at least."}
    )
    num_classes: int | None = field(
        default=None, metadata={"help": "Stop unless there are so many proxy classes."}
    )
    num_classes_2026: int | None = field(
        default=None,
        metadata={"help": "The same, but only where all machines of 2026 are trained on."},
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
    calibration: Literal["held_out", "cross_fitted"] = field(
        default="held_out",
        metadata={
            "help": "Where thresholds come from: clips kept back; or all clips, each scored by one "
            "of num_folds more encoders, trained without it (so it takes 1 + num_folds trainings)."
        },
    )
    held_out_share: float = field(
        default=0.1, metadata={"help": "Normal clips kept back, of calibration held_out."}
    )
    num_folds: int = field(
        default=5, metadata={"help": "Of calibration cross_fitted: encoders trained beside."}
    )
    threshold: Literal["percentile", "gamma"] = field(
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
    profile_clips: int = field(
        default=50,
        metadata={"help": "References per machine whose mean anomaly maps compare with; 0: none."},
    )
    report_to: list[str] = field(
        default_factory=lambda: ["jsonl"], metadata={"help": "jsonl, and accelerate's trackers."}
    )
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "'latest', or a folder under trainer_state."}
    )
    encoder_license: str | None = field(
        default=None,
        metadata={"help": "Of its weights, for the card; None takes the folder's or the authors'."},
    )
    data_license: str | None = field(
        default=None, metadata={"help": "Of the recordings, for the card."}
    )
    push_to_hub: bool = field(default=False, metadata={"help": "Publish the run in the end."})
    hub_model_id: str | None = field(
        default=None, metadata={"help": "owner/name; None takes the name of output_dir."}
    )
    hub_private_repo: bool = field(default=False, metadata={"help": "Nobody else may see it."})
    hub_token: str | None = field(
        default=None, metadata={"help": "With write access; None takes HF_TOKEN or a stored one."}
    )

    @property
    def hub_name(self) -> str:
        """The repository that the run is published in."""
        return self.hub_model_id or self.output_dir.resolve().name

    @property
    def state_dir(self) -> Path:
        """Where training states are saved."""
        return self.output_dir / "trainer_state"


def check_arguments(args: TrainArguments) -> None:
    """Raise ValueError where arguments make no sense together."""
    if args.data_dir is None:
        raise ValueError(
            "The following arguments are required: --data_dir. Only --smoke makes its own data."
        )
    check_kind(args)
    if args.kind in FUSION_ARGUMENTS:
        return  # its members are checked, each by itself
    if args.profile_clips < 0:
        raise ValueError(f"profile_clips={args.profile_clips} must not be negative.")
    check_training(args)
    check_channels(args)
    check_lora(args)
    check_guard(args)
    check_streaming(args)


def check_kind(args: TrainArguments) -> None:
    """Raise ValueError where an argument was given that the kind of the system does not read."""
    if args.kind in FUSION_ARGUMENTS:
        # A command line is for the members, too.
        given = [] if args.recipe is None else list(read_recipe(TrainArguments, args.recipe))
        read = {*LOCAL_ARGUMENTS, *FUSION_ARGUMENTS[args.kind]}
        hint = "Write them into the recipes or overrides of its members."
    elif args.kind == "autoencoder":
        given, hint = changed_names(args), "Leave them out."
        read = {*LOCAL_ARGUMENTS, *AUTOENCODER_ARGUMENTS}
    else:
        given, hint = changed_names(args), "Leave them out."
        fusions = {field.name for field in dataclasses.fields(MemberOptions)}
        read = {*given} - {"autoencoder_config", *fusions}
    if unread := [name for name in given if name not in read]:
        raise ValueError(f"kind={args.kind!r} does not read {unread}. {hint}")


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


def check_streaming(args: TrainArguments) -> None:
    """Raise ValueError where an option needs clips at will, which a stream does not give."""
    if args.streaming and args.target_share is not None:
        raise ValueError(
            f"target_share={args.target_share} draws some clips many times an epoch, but "
            "--streaming reads each once. Leave one of them out."
        )
    if args.streaming and args.resample:
        raise ValueError(
            "resample is for wav files, but --streaming reads published recordings, which have "
            "one rate. Leave one of them out."
        )
    if args.streaming and args.clip_memory_gib:
        raise ValueError(
            f"clip_memory_gib={args.clip_memory_gib} keeps the clips in memory, but --streaming "
            "keeps none. Leave one of them out."
        )


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
