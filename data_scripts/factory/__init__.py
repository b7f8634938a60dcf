"""A simulated factory: machines, rooms, two microphones and faults, in the official layout.

    python -m data_scripts.factory --output_dir DATA --machines 3 --seed 0

Everything is drawn from the seed: another seed gives other machines, not only other clips. Machines
are a fan, a pump, a gearbox, a slider, another fan, ...; the names of all but the sliders tell
attributes (speed and load), so three machines all have them. The target domain has other speeds or
loads, other places in the hall, and other noise.

Its presets are tuned on seeds below 10. Results are reported on seeds from 100 on.
"""

from .acoustics import Hall, Scene, draw_hall, draw_scene
from .clips import PRESETS, Clip, Preset, render_clip
from .faults import FAULTS, Fault, make_fault
from .machines import FAMILIES, Machine, Setting, draw_machine
from .plan import FactoryArguments, PlannedClip, plan_clips
from .simulate import machine_of, scene_of, simulate_clip, simulate_factory

__all__ = [
    "FAMILIES",
    "FAULTS",
    "PRESETS",
    "Clip",
    "FactoryArguments",
    "Fault",
    "Hall",
    "Machine",
    "PlannedClip",
    "Preset",
    "Scene",
    "Setting",
    "draw_hall",
    "draw_machine",
    "draw_scene",
    "machine_of",
    "make_fault",
    "plan_clips",
    "render_clip",
    "scene_of",
    "simulate_clip",
    "simulate_factory",
]
