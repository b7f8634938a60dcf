"""Speed of the front ends: `python -m benchmarks.front_ends_speed`.

All front ends with their default options clean the same clips, in turn, on one thread. A line each:
how many seconds of sound (two channels) one second of the processor cleans, the best of all
repetitions, and what that does to the clips, in dB of SI-SDR: a hum as the machine, and noise that
reaches near over a known path. The path is shorter than any filter, and far hears no machine, so
the gain says that a front end works, not which one is best: rooms are in the factory.
"""

import platform
import time
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from modeling import FRONT_ENDS
from nearfar.arguments import check_names, parse_arguments, script

SAMPLING_RATE = 16_000
PATH_LENGTH = 160  # samples, 10 ms


@dataclass(kw_only=True)
class FrontEndsSpeedArguments:
    """Arguments of benchmarks.front_ends_speed."""

    front_ends: list[str] = field(
        default_factory=lambda: list(FRONT_ENDS), metadata={"help": f"Of {', '.join(FRONT_ENDS)}."}
    )
    batch_size: int = field(default=8, metadata={"help": "Clips cleaned together."})
    seconds: float = field(default=10.0, metadata={"help": "Length of a clip."})
    repetitions: int = field(default=3, metadata={"help": "Timed runs of each; the best counts."})
    seed: int = 0


def main() -> None:
    """Measure all front ends in turn, then print the table."""
    args = parse_arguments(FrontEndsSpeedArguments)
    check_names("front_ends", args.front_ends, FRONT_ENDS)
    torch.set_num_threads(1)
    machine, near, far = simulate_clips(
        args.batch_size, round(args.seconds * SAMPLING_RATE), seed=args.seed
    )
    seconds, gains = measure(
        args.front_ends, machine, near, far, repetitions=max(args.repetitions, 1)
    )
    print(
        f"torch {torch.__version__}, {platform.machine()}, 1 thread, float32, "
        f"{args.batch_size} clips of {args.seconds:g} s at {SAMPLING_RATE} Hz"
    )
    print(f"{'front end':<24}{'x real time':>12}{'SI-SDR gain':>13}")
    for name in args.front_ends:
        real_time = args.batch_size * args.seconds / seconds[name]
        print(f"{name:<24}{real_time:>12.0f}{gains[name]:>10.1f} dB")


def simulate_clips(
    batch_size: int, num_samples: int, *, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return machine, near and far, (batch_size, num_samples) each; near is machine plus noise.

    The machine hums at 20 harmonics of a speed that sways; the noise is louder by 10 dB, falls off
    by 6 dB per octave above 300 Hz, and reaches near over a decaying path of its own per clip.
    """
    generator = torch.Generator().manual_seed(seed)
    time_axis = torch.arange(num_samples, dtype=torch.float64) / SAMPLING_RATE
    speed = 60 + 60 * torch.rand(batch_size, 1, generator=generator)  # Hz
    phase = 2 * torch.pi * speed * time_axis + torch.sin(2 * torch.pi * 0.7 * time_axis)
    harmonics = torch.arange(1, 21, dtype=torch.float64)[:, None, None]
    machine = (torch.sin(harmonics * phase) / harmonics.sqrt()).sum(0).float()
    white = torch.randn(batch_size, num_samples, generator=generator)
    frequency = torch.fft.rfftfreq(num_samples, 1 / SAMPLING_RATE)
    far = torch.fft.irfft(torch.fft.rfft(white) / (1 + frequency / 300), num_samples)
    path = torch.randn(batch_size, 1, PATH_LENGTH, generator=generator)
    path = path * torch.exp(-torch.arange(PATH_LENGTH) / 30)
    noise = F.conv1d(F.pad(far, (PATH_LENGTH - 1, 0))[None], path, groups=batch_size)[0]
    noise = noise * (10**0.5 * rms(machine) / rms(noise))
    peak = (machine + noise).abs().amax(-1, keepdim=True) / 0.5
    return machine / peak, (machine + noise) / peak, far * (rms(noise) / rms(far)) / peak


def rms(waveform: Tensor) -> Tensor:
    """Return the root of the mean square, (clips, 1)."""
    return waveform.square().mean(-1, keepdim=True).sqrt()


@torch.inference_mode()
def measure(
    names: list[str], machine: Tensor, near: Tensor, far: Tensor, *, repetitions: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the processor's seconds for the whole batch, and the mean gain in dB, per front end.

    Time of the processor, not of the clock: on one thread that is the same, unless others compute.
    """
    lengths = torch.full((len(near),), near.shape[1])
    seconds = dict.fromkeys(names, float("inf"))
    gains = {}
    for _ in range(repetitions):
        for name in names:
            front_end = FRONT_ENDS[name]()
            start = time.process_time()
            cleaned = front_end(near, far, lengths)
            seconds[name] = min(seconds[name], max(time.process_time() - start, 1e-9))
            gains[name] = (si_sdr(cleaned, machine) - si_sdr(near, machine)).mean().item()
    return seconds, gains


def si_sdr(estimate: Tensor, target: Tensor) -> Tensor:
    """Return the scale-invariant signal-to-distortion ratio in dB, (clips,) (Le Roux, 2019)."""
    share = (estimate * target).sum(-1, keepdim=True) / target.square().sum(-1, keepdim=True)
    wanted = share * target
    return 10 * torch.log10(wanted.square().sum(-1) / (estimate - wanted).square().sum(-1))


if __name__ == "__main__":
    script(main)
