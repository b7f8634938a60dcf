"""How a model is trained: the options of the training loop, and which make no sense together."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(kw_only=True)
class TrainingOptions:
    """How a model is trained."""

    num_train_epochs: int = field(default=10, metadata={"help": "Passes over the training clips."})
    max_steps: int | None = field(
        default=None, metadata={"help": "Optimiser updates; overrides num_train_epochs."}
    )
    train_batch_size: int = field(
        default=16,
        metadata={
            "help": "Clips per batch, all processes together; autoencoders: stacks of frames."
        },
    )
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Batches per update."})
    learning_rate: float = field(
        default=1e-4, metadata={"help": "Peak rate of AdamW; autoencoders: of Adam."}
    )
    weight_decay: float = field(default=0.01, metadata={"help": "Of AdamW."})
    lr_scheduler_type: Literal["constant", "cosine", "inverse_sqrt", "linear", "step"] = field(
        default="cosine", metadata={"help": "How the learning rate goes on after its warm-up."}
    )
    warmup_steps: int = field(default=0, metadata={"help": "Updates with a rising rate."})
    lr_step_epochs: int = field(
        default=5, metadata={"help": "Epochs between two steps of lr_scheduler_type step."}
    )
    lr_step_factor: float = field(
        default=0.5, metadata={"help": "What such a step multiplies the rate by."}
    )
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradients are clipped to it."})
    ema_decay: float = field(
        default=0.0,
        metadata={"help": "Moving average of the weights, evaluated and saved in place of them."},
    )
    target_share: float | None = field(
        default=None,
        metadata={"help": "Of a machine's draws, those of its target clips; None: each clip once."},
    )
    far_mixing: float = field(
        default=0.0,
        metadata={"help": "Training hears near + a * far with a from U(0, this); 0 is off."},
    )
    crop_seconds: float | None = field(
        default=None,
        metadata={"help": "Training hears a random piece of each clip; None hears all of it."},
    )
    mixup_alpha: float = field(
        default=0.0,
        metadata={"help": "Mixes clips and labels by shares from Beta(this, this); 0 is off."},
    )
    mixup_probability: float = field(default=1.0, metadata={"help": "That a clip is mixed."})
    noise_probability: float = field(
        default=0.0, metadata={"help": "That a clip is heard in noise; 0 is off."}
    )
    noise_source: Literal["far", "white"] = field(
        default="far", metadata={"help": "Noise: the far channel of another clip, or white."}
    )
    noise_snrs_db: list[float] = field(
        default_factory=lambda: [5.0, 10.0, 15.0, 20.0],
        metadata={"help": "Signal-to-noise ratios, one of which is drawn."},
    )
    gain_db: float = field(
        default=0.0, metadata={"help": "Clips are made louder by U(-this, this) dB; 0 is off."}
    )
    time_mask: int = field(
        default=0, metadata={"help": "SpecAugment: longest masked run of frames; 0 is off."}
    )
    frequency_mask: int = field(
        default=0, metadata={"help": "SpecAugment: longest masked run of bins; 0 is off."}
    )
    mask_probability: float = field(
        default=1.0, metadata={"help": "That a clip gets a time mask; a frequency mask likewise."}
    )
    pseudo_label_epochs: int | None = field(
        default=None,
        metadata={"help": "Epochs between two clusterings of pseudo labels; None: only at first."},
    )
    validation_share: float = field(
        default=0.0,
        metadata={
            "help": "Of each class's references, those that only select weights; autoencoders: of "
            "the stacks of frames, those that only watch the training."
        },
    )
    eval_steps: int | None = field(
        default=None, metadata={"help": "Updates between two validations; None: one per epoch."}
    )
    selection_metric: Literal["proxy_loss", "proxy_accuracy"] = field(
        default="proxy_loss", metadata={"help": "Of validation clips: what the best weights have."}
    )
    keep_best: int = field(
        default=0, metadata={"help": "Best weights averaged in the end; 0 takes the last ones."}
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Validations without a new best before training stops."}
    )
    shuffle_buffer_size: int = field(
        default=500,
        metadata={
            "help": "Clips mixed at once where they are streamed; memory holds up to four times as "
            "many."
        },
    )
    save_steps: int = field(
        default=200, metadata={"help": "Updates between two saved states; the last one is kept."}
    )
    logging_steps: int = field(default=10, metadata={"help": "Updates between two log lines."})
    dataloader_num_workers: int = field(
        default=0, metadata={"help": "Processes that decode clips ahead of training."}
    )
    clip_memory_gib: float = field(
        default=0.0, metadata={"help": "Decoded training clips kept in memory, in GiB; 0: none."}
    )
    seed: int = field(default=0, metadata={"help": "Of everything drawn at random."})


_COUNTS_FROM_ONE = (
    *("num_train_epochs", "max_steps", "train_batch_size", "gradient_accumulation_steps"),
    *("lr_step_epochs", "pseudo_label_epochs", "eval_steps", "early_stopping_patience"),
    *("save_steps", "logging_steps", "shuffle_buffer_size"),
)
_NOT_NEGATIVE = (
    *("learning_rate", "weight_decay", "warmup_steps", "lr_step_factor", "far_mixing"),
    *("mixup_alpha", "gain_db", "time_mask", "frequency_mask", "keep_best"),
    *("dataloader_num_workers", "clip_memory_gib", "seed"),
)
_SHARES = ("mixup_probability", "noise_probability", "mask_probability")


def check_training(options: TrainingOptions) -> None:
    """Raise ValueError where an option is out of its range, or useless without another."""
    for name in _COUNTS_FROM_ONE:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    for name in _NOT_NEGATIVE:
        if getattr(options, name) < 0:
            raise ValueError(f"{name}={getattr(options, name)} must not be negative.")
    for name in _SHARES:
        if not 0 <= getattr(options, name) <= 1:
            raise ValueError(f"{name}={getattr(options, name)} must be in [0, 1].")
    if not 0 <= options.ema_decay < 1:
        raise ValueError(f"ema_decay={options.ema_decay} must be in [0, 1); 0 is no average.")
    if options.target_share is not None and not 0 < options.target_share < 1:
        raise ValueError(
            f"target_share={options.target_share} must be in (0, 1), or none to draw every clip "
            "once."
        )
    if options.crop_seconds is not None and not options.crop_seconds > 0:
        raise ValueError(
            f"crop_seconds={options.crop_seconds} must be positive, or none for whole clips."
        )
    if options.noise_probability and not options.noise_snrs_db:
        raise ValueError(
            f"noise_probability={options.noise_probability}, but noise_snrs_db names no "
            "signal-to-noise ratio. Give one or more."
        )
