"""Pictures say in words what they show, and show what they say."""

import base64
import io
import re

import numpy as np
from matplotlib import colormaps
from PIL import Image

from demo.detector import Verdict, WindowVerdict
from demo.pictures import clock, gauge, map_weights, number, spectrogram_url, timeline, verdict_card

MAP = {
    "values": [[0.0, 2.0], [-3.0, 1.0]],  # two times of two bands
    "time_edges_seconds": [0.0, 1.0, 2.0],
    "band_edges_hz": [0.0, 1000.0, 4000.0],
}


def verdict(**changes: object) -> Verdict:
    windows = (WindowVerdict(0.0, 10.0, 0.3, True, 0.1),)
    values = {
        "recording": "<b>clip</b>.wav",
        "machine": "2026/fan/00",
        "anomaly_score": 0.3,
        "threshold": 0.2,
        "anomalous": True,
        "p_value": 0.1,
        "num_calibration": 9,
        "expected_share": 0.1,
        "windows": windows,
        "shown": 0,
        "nearest_references": (),
        "notes": (),
    }
    return Verdict(**(values | changes))


def test_a_verdict_is_told_in_words_and_a_name_cannot_inject_markup() -> None:
    card = verdict_card(verdict(), "Fan", [0.1, 0.15, 0.21])
    assert "Does not sound normal" in card
    assert "<b>" not in card
    assert "cannot say less than p = 0.10" in card
    assert "Sounds normal" in verdict_card(verdict(anomalous=False, p_value=0.8), "Fan", [])
    none = verdict(anomalous=None, p_value=None, threshold=None)
    assert "No verdict" in verdict_card(none, "Fan", [])


def test_the_gauge_puts_what_is_odder_further_right() -> None:
    drawn = gauge(verdict(), [0.1, 0.15])
    needle = float(re.search(r'nf-needle" d="M([\d.]+)', drawn)[1])
    line = float(re.search(r'nf-threshold" x1="([\d.]+)', drawn)[1])
    dots = [float(x) for x in re.findall(r'nf-dot" cx="([\d.]+)', drawn)]
    assert dots[0] < dots[1] < line < needle
    assert 'aria-label="Anomaly score 0.300, threshold 0.200; 2 normal' in drawn


def test_the_timeline_names_the_windows_above_the_threshold() -> None:
    windows = [
        WindowVerdict(10.0 * i, 10.0 * i + 10, 0.1 + 0.2 * (i == 2), i == 2, 0.5) for i in range(4)
    ]
    drawn = timeline(windows, 0.2, 2)
    assert "starting at: 0:20." in drawn
    assert drawn.count("nf-bar-bad") == 1


def test_the_map_tints_its_cells_and_only_what_raises_the_score() -> None:
    weights = map_weights(MAP, 81, 4, 2.0)  # rows every 100 Hz
    assert weights.shape == (81, 4)
    assert (weights[:10] == 0).all()  # the low band lowers the score, or says nothing
    np.testing.assert_array_equal(weights[10:40], np.tile([1.0, 1.0, 0.5, 0.5], (30, 1)))
    assert (weights[40:] == 0).all()  # beyond the map
    lifted = [[value + 5 for value in row] for row in MAP["values"]]
    np.testing.assert_allclose(map_weights(MAP | {"values": lifted}, 81, 4, 2.0), weights)


def test_a_spectrogram_has_low_frequencies_at_its_bottom() -> None:
    level = np.full((257, 900), -60.0)
    level[:20] = 0.0
    url = spectrogram_url(level, 0.0, 10.0)
    image = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("L")
    pixels = np.asarray(image, dtype=float)
    assert pixels.shape == (129, 360)
    assert pixels[-5:].mean() > 150 > 20 > pixels[:50].mean()


def test_a_tint_lies_where_the_map_says_and_changes_no_shade_elsewhere() -> None:
    level = np.full((161, 300), -30.0)
    pictures = [
        Image.open(io.BytesIO(base64.b64decode(spectrogram_url(level, 0.0, 2.0, drawn)[22:])))
        for drawn in (None, MAP)
    ]
    plain, tinted = (np.asarray(picture.convert("RGB"), dtype=float) for picture in pictures)
    rows = slice(129 - 129 * 40 // 80 + 2, 129 - 129 * 10 // 80 - 2)  # 1 to 4 kHz
    assert (tinted[rows, :150, 1] > plain[rows, :150, 1] + 50).all()
    np.testing.assert_array_equal(tinted[rows.stop + 4 :], plain[rows.stop + 4 :])
    expected = colormaps["magma"](0.5)[:3]
    np.testing.assert_allclose(plain[0, 0] / 255, expected, atol=0.03)


def test_a_clock_counts_minutes_and_a_tiny_number_keeps_its_digits() -> None:
    assert [number(value) for value in (0.0, 0.25, 3.0, 0.00042)] == [
        "0.000",
        "0.250",
        "3.000",
        "0.00042",
    ]
    assert [clock(seconds) for seconds in (0, 59.6, 65, 600)] == ["0:00", "1:00", "1:05", "10:00"]
