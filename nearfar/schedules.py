"""Learning-rate schedules with warm-up, all counted in optimiser updates."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from nearfar.training_options import TrainingOptions

# Name here -> name in transformers, whose "constant" has no warm-up.
TRANSFORMERS_SCHEDULES = {
    "constant": "constant_with_warmup",
    "cosine": "cosine",
    "inverse_sqrt": "inverse_sqrt",
    "linear": "linear",
}


def build_schedule(
    optimizer: Optimizer, options: TrainingOptions, *, num_updates: int, updates_per_epoch: int
) -> LambdaLR:
    """Return the schedule that `options` name; it is stepped once per optimiser update.

    With w warm-up updates, all rise linearly from 0 to `learning_rate` at update w. Then "constant"
    stays; "linear" and "cosine" fall to 0 at the last update; "inverse_sqrt" falls as sqrt(w / u)
    with the update u, without warm-up as sqrt(10000 / (u + 10000)); "step" is multiplied by
    `lr_step_factor` after every `lr_step_epochs` epochs.

    Args:
        optimizer: Its rate is the peak.
        options: Their `lr_scheduler_type`, `warmup_steps`, `lr_step_epochs` and `lr_step_factor`.
        num_updates: Of the whole training.
        updates_per_epoch: Of one pass.
    """
    if options.lr_scheduler_type != "step":
        schedule: LambdaLR = get_scheduler(
            TRANSFORMERS_SCHEDULES[options.lr_scheduler_type],
            optimizer,
            num_warmup_steps=options.warmup_steps,
            num_training_steps=num_updates,
        )
        return schedule
    updates_per_step = options.lr_step_epochs * updates_per_epoch

    def share(update: int) -> float:
        warm = min(1.0, update / max(1, options.warmup_steps)) if options.warmup_steps else 1.0
        return warm * float(options.lr_step_factor ** (update // updates_per_step))

    return LambdaLR(optimizer, share)
