"""A simulated factory: machines, rooms, two microphones and faults, in the official layout.

    python -m data_scripts.factory --output_dir DATA --machines 3 --seed 0
    python -m data_scripts.factory --output_dir DATA --machines 7 --seed 0 --preset challenge

Everything is drawn from the seed: another seed gives other machines, not only other clips. The
target domain has other speeds, loads or tools, and other noise from other places.

`easy` (the demo): fan, pump, gearbox, slider, ...; the names of all but the sliders tell
attributes. Tuned on seeds below 10; its results are reported on seeds from 100 on.

`challenge`: nine families, reverberant halls with steady and moving noise, coloured and clipping
microphones; for log-mel 1-NN about as hard as the recordings of 2026. Tuned on seeds 20 to 25 (see
`presets.py`); its results are reported on seeds from 30 on.
"""

from .acoustics import Hall, Scene, draw_hall, draw_scene
from .cast import machine_of, scene_of, simulate_clip
from .clips import Clip, render_clip
from .damage import DAMAGES, Fault
from .faults import FAULTS, make_fault
from .identities import draw_identity
from .machines import FAMILIES, BearingGeometry, Machine, Setting, draw_machine
from .plan import EVALUATION, FactoryArguments, PlannedClip, plan_clips
from .presets import PRESETS, Preset
from .recordings import Recordings
from .simulate import simulate_factory
from .workshop import Workplace, Workshop, draw_workplace, draw_workshop

__all__ = [
    "DAMAGES",
    "EVALUATION",
    "FAMILIES",
    "FAULTS",
    "PRESETS",
    "BearingGeometry",
    "Clip",
    "FactoryArguments",
    "Fault",
    "Hall",
    "Machine",
    "PlannedClip",
    "Preset",
    "Recordings",
    "Scene",
    "Setting",
    "Workplace",
    "Workshop",
    "draw_hall",
    "draw_identity",
    "draw_machine",
    "draw_scene",
    "draw_workplace",
    "draw_workshop",
    "machine_of",
    "make_fault",
    "plan_clips",
    "render_clip",
    "scene_of",
    "simulate_clip",
    "simulate_factory",
]
