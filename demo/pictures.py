"""What the page shows of a verdict, as HTML and SVG that follow its light or dark theme."""

import base64
import io
from collections.abc import Mapping, Sequence
from functools import cache
from html import escape
from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from data_scripts.clip_files import SAMPLING_RATE
from demo.detector import Verdict, WindowVerdict
from nearfar.plots import power_db

WIDTH, LEFT, RIGHT = 420.0, 8.0, 412.0  # of gauge and timeline, in their own units
RANGE_DB = 60.0  # from the loudest point of all panels down to the darkest colour
PIXELS = (129, 360)  # rows and columns of a spectrogram at most; more are averaged
SHADES, TINTS = 42, 6  # whose products fit one palette
TINT = (0.25, 1.0, 0.85)  # of what raises the score; magma has no such colour
MAX_TINT = 0.6
ICONS = {False: "✓", True: "!", None: "?"}
TONES = {False: "good", True: "bad", None: "open"}


def verdict_card(verdict: Verdict, machine: str, scores: Sequence[float]) -> str:
    """Return the verdict in words, with its gauge and, for a long recording, its timeline.

    Args:
        verdict: Of the recording.
        machine: How the page calls it.
        scores: Of the machine's calibration clips.
    """
    headline = {
        False: "Sounds normal",
        True: "Does not sound normal",
        None: "No verdict",
    }[verdict.anomalous]
    parts = [
        f'<section class="nf-card nf-{TONES[verdict.anomalous]}">',
        f'<p class="nf-icon" aria-hidden="true">{ICONS[verdict.anomalous]}</p>',
        f"<div><h2>{headline}</h2>",
        f'<p class="nf-what">{_breakable(verdict.recording)} as {escape(machine)}</p>',
        f"<p>{_in_words(verdict)}</p></div>",
        gauge(verdict, scores),
    ]
    if len(verdict.windows) > 1:
        parts.append(timeline(verdict.windows, verdict.threshold, verdict.shown))
    parts += [f'<p class="nf-note">{escape(note)}</p>' for note in verdict.notes]
    return "".join([*parts, "</section>"])


def _in_words(verdict: Verdict) -> str:
    """Return what threshold and p-value mean, for people."""
    if verdict.p_value is None or verdict.threshold is None:
        return (
            "This machine has references but no calibration clips, so there is a score and no "
            "threshold to compare it with."
        )
    rarity = f"{100 * verdict.p_value:.0f}"
    least = 1 / (verdict.num_calibration + 1)
    words = (
        f"Of 100 normal recordings of this machine, about {rarity} would sound at least as unusual "
        f"(p = {verdict.p_value:.2f})."
    )
    if verdict.p_value <= least:
        words += (
            f" It is odder than all {verdict.num_calibration} normal recordings set aside for "
            f"comparison, and so few cannot say less than p = {least:.2f}."
        )
    elif verdict.anomalous:
        words += " Normal ones come that high at times: listen, and record again before you act."
    if len(verdict.windows) > 1:
        above = sum(bool(window.anomalous) for window in verdict.windows)
        words = (
            f"{above} of {len(verdict.windows)} windows exceed the threshold; of a normal machine "
            f"about {100 * verdict.expected_share:.0f} % do. The verdict is that on the median "
            f"window. {words}"
        )
    return words


def gauge(verdict: Verdict, scores: Sequence[float]) -> str:
    """Return an SVG: the score on a scale, beside the threshold and the calibration clips."""
    known = [*scores, verdict.anomaly_score]
    if verdict.threshold is not None:
        known.append(verdict.threshold)
    low, high = min(known), max(known)
    margin = 0.08 * (high - low) or max(abs(high), 1.0)
    low, high = low - margin, high + margin

    def x(value: float) -> float:
        return LEFT + (RIGHT - LEFT) * (value - low) / (high - low)

    name = f"Anomaly score {number(verdict.anomaly_score)}"
    edge = RIGHT
    texts = []
    if verdict.threshold is not None:
        name += f", threshold {number(verdict.threshold)}"
        edge = x(verdict.threshold)
        texts.append(_label(edge, 78, f"threshold {number(verdict.threshold)}"))
    if scores:
        span = f"{number(min(scores))} to {number(max(scores))}"
        name += f"; {len(scores)} normal recordings score {span}"
    dots = "".join(f'<circle class="nf-dot" cx="{x(s):.1f}" cy="44" r="4"/>' for s in scores)
    at = x(verdict.anomaly_score)
    return (
        f'<svg class="nf-gauge" viewBox="0 0 {WIDTH} 88" role="img" aria-label="{escape(name)}">'
        f'<rect class="nf-normal" x="{LEFT}" y="36" width="{edge - LEFT:.1f}" height="16" rx="8"/>'
        f'<rect class="nf-beyond" x="{edge:.1f}" y="36" width="{RIGHT - edge:.1f}" height="16" '
        f'rx="8"/>{dots}'
        f'<line class="nf-threshold" x1="{edge:.1f}" x2="{edge:.1f}" y1="30" y2="58"/>'
        f'<path class="nf-needle" d="M{at:.1f} 54 l-9 -28 h18 z"/>'
        f"{_label(at, 18, f'this recording {number(verdict.anomaly_score)}')}{''.join(texts)}</svg>"
        '<p class="nf-legend">Further right is less like normal. Dots: normal recordings that '
        "neither trained the detector nor serve as references.</p>"
    )


def timeline(windows: Sequence[WindowVerdict], threshold: float | None, shown: int) -> str:
    """Return an SVG: the score of each window over time."""
    scores = [window.anomaly_score for window in windows]
    high = max([*scores, threshold or 0.0]) * 1.1
    low = min([0.0, *scores])
    end = windows[-1].end_seconds

    def y(value: float) -> float:
        return 90 - 80 * (value - low) / (high - low)

    bars = []
    for index, window in enumerate(windows):
        left = LEFT + (RIGHT - LEFT) * window.start_seconds / end
        width = max((RIGHT - LEFT) * (window.end_seconds - window.start_seconds) / end - 2, 2)
        tone = TONES[window.anomalous] + (" nf-shown" if index == shown else "")
        top = y(window.anomaly_score)
        span = f"{clock(window.start_seconds)} to {clock(window.end_seconds)}"
        bars.append(
            f'<rect class="nf-bar nf-bar-{tone}" x="{left:.1f}" y="{top:.1f}" '
            f'width="{width:.1f}" height="{90 - top:.1f}">'
            f"<title>{span}: {number(window.anomaly_score)}</title></rect>"
        )
    line = ""
    if threshold is not None:
        line = (
            f'<line class="nf-threshold" x1="{LEFT}" x2="{RIGHT}" y1="{y(threshold):.1f}" '
            f'y2="{y(threshold):.1f}"/>'
        )
    above = [clock(window.start_seconds) for window in windows if window.anomalous]
    name = (
        f"Timeline of {len(windows)} windows over {clock(end)}. "
        f"Above the threshold, starting at: {', '.join(above) or 'none'}."
    )
    return (
        f'<svg class="nf-timeline" viewBox="0 0 {WIDTH} 112" role="img" '
        f'aria-label="{escape(name)}">'
        f"{''.join(bars)}{line}{_label(LEFT, 108, '0:00', 'start')}"
        f"{_label(RIGHT, 108, clock(end), 'end')}</svg>"
        '<p class="nf-legend">Score of each window over time; the line is the threshold. Below: '
        f"the outlined window, {clock(windows[shown].start_seconds)} to "
        f"{clock(windows[shown].end_seconds)}, the most unusual one.</p>"
    )


def sound_panels(
    waveforms: Mapping[str, NDArray[np.float32]],
    players: Mapping[str, str],
    captions: Mapping[str, str],
    anomaly_map: Mapping[str, Any] | None = None,
) -> str:
    """Return spectrograms on one scale of colours, each with its player.

    Args:
        waveforms: Name -> (num_samples,); the last is what the detector hears.
        players: Name -> URL of the same sound.
        captions: Name -> what it is.
        anomaly_map: As the pipeline's "map", drawn over the last.
    """
    levels = {name: power_db(waveform) for name, waveform in waveforms.items()}
    loudest = max(float(level.max()) for level in levels.values())
    panels = []
    for name, level in levels.items():
        seconds = len(waveforms[name]) / SAMPLING_RATE
        mapped = anomaly_map if name == list(levels)[-1] else None
        picture = spectrogram_url(level, loudest, seconds, mapped)
        tinted = "" if mapped is None else "; tinted where most of the score comes from"
        caption = escape(captions[name])
        panels.append(
            f'<figure class="nf-panel"><figcaption><b>{escape(name)}</b>{caption}</figcaption>'
            f'<div class="nf-axes"><span class="nf-y" aria-hidden="true">8 kHz</span>'
            f'<img src="{picture}" alt="Spectrogram of {escape(name)}, {caption}{tinted}">'
            f'<span class="nf-x" aria-hidden="true"><span>0 s</span><span>{seconds:.1f} s</span>'
            f'</span></div><audio controls preload="metadata" src="{escape(players[name])}" '
            f'aria-label="{escape(name)}"></audio></figure>'
        )
    legend = "Bright is loud; low sounds are at the bottom."
    if anomaly_map is not None:
        legend += (
            f" <b>Green</b> on {escape(list(levels)[-1])}: where most of the score comes from."
        )
    return f'<div class="nf-panels">{"".join(panels)}</div><p class="nf-note">{legend}</p>'


def spectrogram_url(
    level: NDArray[np.float64],
    loudest: float,
    seconds: float,
    anomaly_map: Mapping[str, Any] | None = None,
) -> str:
    """Return a PNG of levels in dB (bins, frames) as a data URL."""
    rows, columns = (min(most, size) for most, size in zip(PIXELS, level.shape, strict=True))
    power = _averaged(_averaged(10 ** (level / 10), rows).T, columns).T
    shade = np.clip((10 * np.log10(power) - loudest) / RANGE_DB + 1, 0, 1)
    index = TINTS * np.round(shade * (SHADES - 1))
    if anomaly_map is not None:
        index += np.round(map_weights(anomaly_map, rows, columns, seconds) * (TINTS - 1))
    image = Image.fromarray(np.ascontiguousarray(index[::-1].astype(np.uint8)))
    image.putpalette(_palette())
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)  # the rest is noise
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _averaged(power: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Return means of neighbouring rows, `count` of them."""
    edges = np.linspace(0, len(power), count + 1).astype(int)
    means: NDArray[np.float64] = np.add.reduceat(power, edges[:-1], axis=0)
    return means / np.diff(edges)[:, None]


@cache
def _palette() -> bytes:
    """Return every shade with every tint as RGB, the shades of one tint apart by `TINTS`."""
    shades = colormaps["magma"](np.linspace(0, 1, SHADES))[:, None, :3]
    weights = MAX_TINT * np.linspace(0, 1, TINTS)[:, None]
    colours = (1 - weights) * shades + weights * np.array(TINT)
    return np.round(255 * colours).astype(np.uint8).tobytes()


def map_weights(
    anomaly_map: Mapping[str, Any], num_bins: int, num_columns: int, seconds: float
) -> NDArray[np.float64]:
    """Return how much each pixel, (bins, columns), raises the score: from 0 to 1, the most.

    A share of the score that every cell has says nothing of where it comes from, so only what a
    cell has beyond the mean cell counts.

    Args:
        anomaly_map: values (times, bands), time_edges_seconds, band_edges_hz.
        num_bins: Rows, from 0 Hz to the half of the sampling rate.
        num_columns: Over the whole sound.
        seconds: Length of the sound.
    """
    values = np.asarray(anomaly_map["values"], dtype=np.float64)
    values = np.clip(values - values.mean(), 0, None)
    times = (np.arange(num_columns) + 0.5) * seconds / num_columns
    hertz = np.arange(num_bins) * SAMPLING_RATE / 2 / (num_bins - 1)
    cells = []
    for edges, at in (
        (anomaly_map["time_edges_seconds"], times),
        (anomaly_map["band_edges_hz"], hertz),
    ):
        index = np.searchsorted(np.asarray(edges), at, side="right") - 1
        cells.append((np.clip(index, 0, len(edges) - 2), (index >= 0) & (index < len(edges) - 1)))
    (time, in_time), (band, in_band) = cells
    weights = values[time][:, band].T * in_band[:, None] * in_time[None, :]
    return weights / max(float(weights.max()), 1e-12)


def references_panel(
    nearest: Sequence[Mapping[str, Any]], players: Mapping[str, str], why_silent: str
) -> str:
    """Return the nearest normal references, with players for those that can be heard.

    Args:
        nearest: file_name, domain and distance of each.
        players: File name -> URL.
        why_silent: What is said where there is none.
    """
    items = []
    for rank, reference in enumerate(nearest, start=1):
        name = str(reference["file_name"])
        domain = f", {reference['domain']} domain" if reference["domain"] else ""
        url = players.get(name)
        player = (
            f'<audio controls preload="none" src="{escape(url)}" '
            f'aria-label="{escape(f"Reference {name}")}"></audio>'
            if url
            else f'<p class="nf-note">{escape(why_silent)}</p>'
        )
        items.append(
            f"<li><p><b>Normal {rank}</b> distance {number(reference['distance'])}"
            f"{escape(domain)}</p><p class='nf-note'>{_breakable(name)}</p>{player}</li>"
        )
    if not items:
        return ""
    return (
        '<section class="nf-references"><h3>Normal recordings that come nearest</h3>'
        f"<ul>{''.join(items)}</ul></section>"
    )


def message(text: str, *, kind: str = "bad") -> str:
    """Return a text that a screen reader announces.

    Args:
        text: Plain.
        kind: "bad" for what went wrong, "good", "open" for what is neither, or "idle".
    """
    role, icon = "alert" if kind == "bad" else "status", "✓" if kind == "good" else "!"
    return (
        f'<section class="nf-card nf-{kind}" role="{role}"><p class="nf-icon" aria-hidden="true">'
        f"{icon}</p><div><p>{escape(text)}</p></div></section>"
    )


def number(value: float) -> str:
    """Return a score or a distance with three decimals, or two digits where it is tiny."""
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.01 else f"{value:.2g}"


def clock(seconds: float) -> str:
    """Return minutes and seconds, as "1:05"."""
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02d}"


def _breakable(name: str) -> str:
    """Return a file's name as HTML that may break after its underscores."""
    return escape(name).replace("_", "_<wbr>")


def _label(x: float, y: float, text: str, anchor: str = "") -> str:
    if not anchor:
        anchor = "start" if x < 110 else "end" if x > 310 else "middle"
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
