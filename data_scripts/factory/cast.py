"""Who stands where in a factory, by its seed, and how one of its clips sounds."""

import functools

from nearfar.schema import DOMAINS

from .acoustics import draw_hall, draw_scene
from .clips import Clip, render_clip
from .identities import draw_identity
from .machines import Machine, draw_machine
from .plan import (
    CLIP_STREAM,
    EVALUATION,
    HALL_STREAM,
    MACHINE_STREAM,
    PLACE_STREAM,
    FactoryArguments,
    PlannedClip,
    seed_of,
    stream,
)
from .presets import PRESETS, PresetName
from .recordings import Recordings
from .rooms import Place
from .workshop import draw_workplace, draw_workshop


@functools.lru_cache(maxsize=64)
def machine_of(seed: int, number: int, preset: PresetName = "easy") -> Machine:
    """Return machine `number` of the factories with this seed; see `EVALUATION`.

    The evaluation machines go through the families from their end, so that a small evaluation set
    has other families than a small development set.
    """
    families = PRESETS[preset].families
    evaluation = number >= EVALUATION
    generation, turn = divmod(number - EVALUATION if evaluation else number, len(families))
    family = families[-1 - turn if evaluation else turn]
    origin, again = "Eval" if evaluation else "", str(generation + 1) if generation else ""
    machine_type = f"{family}{origin}Sim{again}"
    rng = stream(seed, MACHINE_STREAM, number)
    if preset == "challenge":
        return draw_identity(rng, family, machine_type=machine_type)
    return draw_machine(
        rng, family, machine_type=machine_type, has_attributes=family != families[-1]
    )


@functools.lru_cache(maxsize=64)
def scene_of(seed: int, number: int, domain: str, preset: PresetName = "easy") -> Place:
    """Return where machine `number` stands in a domain: two places of one hall."""
    hall_rng = stream(seed, HALL_STREAM, number)
    rng = stream(seed, PLACE_STREAM, number, DOMAINS.index(domain))
    if preset == "challenge":
        return draw_workplace(rng, draw_workshop(hall_rng))
    return draw_scene(rng, draw_hall(hall_rng))


def simulate_clip(
    arguments: FactoryArguments,
    clip: PlannedClip,
    *,
    severity: float | None = None,
    recordings: Recordings | None = None,
    fault_stem: bool = False,
) -> Clip:
    """Return one clip of a factory; `severity` replaces an anomalous clip's own."""
    machine = machine_of(arguments.seed, clip.machine, arguments.preset)
    preset = PRESETS[arguments.preset]
    low_db, high_db = (bound + arguments.quieter_db for bound in preset.snr_db[clip.domain])
    return render_clip(
        machine,
        scene_of(arguments.seed, clip.machine, clip.domain, arguments.preset),
        clip.setting(machine),
        seed=seed_of(arguments.seed, CLIP_STREAM, *clip.key),
        num_samples=arguments.num_samples(clip.machine),
        snr_db=(low_db, high_db),
        preset=preset,
        anomalous=clip.condition == "anomaly",
        severity=severity,
        recordings=recordings,
        fault_stem=fault_stem,
    )
