"""The page in a real browser: each tab, bad input, accessibility, phone width, network."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from demo.sounds import FactorySounds
from tests.demo.conftest import Served

pytestmark = [pytest.mark.browser, pytest.mark.slow]

TABS = ("Listen", "Enrol", "Compare", "About")
SLOW_MS = 20_000  # for a shared computer; what answers in time is measured by benchmarks


class Visit:
    """A visit to the page, with all that it asked for."""

    def __init__(self, browser: Any, served: Served, *, width: int = 1280, scheme: str) -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 860}, color_scheme=scheme
        )
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page = self.context.new_page()
        self.page.set_default_timeout(SLOW_MS)
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(served.url)
        self.page.get_by_role("button", name="Judge this recording").wait_for()

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()
        self.page.locator(f"[role=tabpanel]:visible >> text=/{WORDS[name]}/").first.wait_for()

    def upload(self, label: str, *paths: Path) -> None:
        """Give files to the visible input of a label."""
        block = self.page.locator(".block:visible", has_text=label).last
        block.locator("input[type=file]").set_input_files([str(path) for path in paths])

    def download(self, label: str) -> None:
        """Click the file of a label."""
        block = self.page.locator(".block:visible", has_text=label).last
        block.locator("a[download]").first.click()

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click()

    def card(self, words: str) -> Any:
        """Wait for an answer that has these words."""
        card = self.page.locator(".nf-card:visible", has_text=words)
        card.first.wait_for()
        return card.first


WORDS = {
    "Listen": "Judge this recording",
    "Enrol": "Enrol this machine",
    "Compare": "Machine of loose wav files",
    "About": "What this detector has heard",
}


@pytest.fixture
def visit(browser: Any, served: Served) -> Iterator[Visit]:
    opened = Visit(browser, served, scheme="light")
    yield opened
    assert opened.complaints == []
    foreign = [
        url
        for url in opened.asked
        if not url.startswith((served.url, "data:", "blob:", "ws://127.0.0.1"))
    ]
    assert foreign == []
    opened.context.close()


def judged(visit: Visit, example: str = "Gearbox, faulty 2") -> None:
    visit.press(example)
    visit.page.locator(".nf-gauge").wait_for()
    visit.page.locator(".nf-references li").first.wait_for()


def test_an_example_is_judged_and_every_sound_plays(visit: Visit) -> None:
    judged(visit)
    assert visit.card("Does not sound normal").is_visible()
    assert visit.page.locator(".nf-panel img").count() == 3
    players = visit.page.locator("audio[aria-label]")
    labels = [players.nth(i).get_attribute("aria-label") for i in range(players.count())]
    assert labels[:3] == ["near", "far", "cleaned"]
    assert len(labels) == 6
    for i in range(players.count()):
        seconds = players.nth(i).evaluate(
            """async player => {
                player.muted = true;
                await player.play();
                await new Promise(done => player.addEventListener("timeupdate", done));
                return player.duration;
            }"""
        )
        assert seconds == pytest.approx(6.0, abs=0.05)


def test_an_uploaded_pair_is_judged_and_a_long_one_has_a_timeline(
    visit: Visit, hum: Callable[..., np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "long.wav"
    soundfile.write(path, np.stack([hum(42), 0.1 * hum(42, seed=1)], axis=1), 16_000)
    visit.upload("Near: a recording", path)
    visit.page.get_by_text("long.wav").first.wait_for(state="attached", timeout=SLOW_MS)
    visit.page.locator(".block:visible", has_text="Near: a recording").locator(
        "text=/0:42/"
    ).first.wait_for()
    visit.press("Judge this recording")
    card = visit.card("of 5 windows exceed the threshold")
    assert "long.wav as Fan (simulated)" in card.inner_text()
    label = visit.page.locator(".nf-timeline").get_attribute("aria-label")
    assert label.startswith("Timeline of 5 windows over 0:42.")


def test_a_machine_is_enrolled_listened_to_and_downloaded(
    visit: Visit, hum: Callable[..., np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "monday.wav"
    soundfile.write(path, hum(80), 16_000)
    visit.tab("Enrol")
    visit.page.get_by_label("Name of the machine").fill("Press 4")
    visit.upload("Recordings of normal sound", path)
    visit.page.get_by_text("monday").first.wait_for()
    visit.press("Enrol this machine")
    assert "8 references" in visit.card("Press 4 (yours) is ready").inner_text()
    assert "Too little" in visit.page.locator(".nf-cautions").inner_text()
    with visit.page.expect_download() as download:
        visit.download("The machine's reference bank")
    assert download.value.suggested_filename == "reference_bank.zip"
    visit.tab("Listen")
    assert visit.page.get_by_label("Machine", exact=True).input_value() == "Press 4 (yours)"
    visit.upload("Near: a recording", path)
    visit.page.locator(".block:visible", has_text="Near: a recording").locator(
        "text=/1:20/"
    ).first.wait_for()
    visit.press("Judge this recording")
    assert "monday.wav as Press 4 (yours)" in visit.card("windows exceed").inner_text()
    assert "A bank holds no sound" in visit.page.locator(".nf-references").inner_text()


def test_a_zip_becomes_a_table_curves_and_a_csv(visit: Visit, clips_zip: Path) -> None:
    visit.tab("Compare")
    visit.upload("Folder, zip or wav files", clips_zip)
    visit.page.get_by_text("test clips").last.wait_for()
    visit.press("Compare")
    visit.card("9 clips scored")
    assert visit.page.locator("img.nf-plot").count() == 3
    visit.page.get_by_text("All clips, the most anomalous first").click()
    assert visit.page.get_by_role("row").filter(has_text="section_00_").count() == 9
    with visit.page.expect_download() as download:
        visit.download("All scores, as CSV")
    lines = Path(download.value.path()).read_text().splitlines()
    assert lines[0].startswith("machine,file_name,domain,condition,anomaly_score")
    assert len(lines) == 10


def folder_of(sounds: FactorySounds, folder: Path) -> Path:
    """Lay a machine's three examples out, beside what is no test clip; return the folder."""
    for part in ("test", "train"):
        (folder / "hall 2" / "fanSim" / part).mkdir(parents=True)
    for example in sounds.examples():
        if "fanSim" in example.machine:
            shutil.copy(example.path, folder / "hall 2" / "fanSim" / "test")
    (folder / "hall 2" / "fanSim" / "train" / "section_00.wav").write_bytes(b"")
    (folder / "notes.txt").write_text("Recorded on Monday.")
    return folder


def test_a_folder_is_chosen_or_dropped_and_becomes_a_table(
    visit: Visit, sounds: FactorySounds, tmp_path: Path
) -> None:
    folder = folder_of(sounds, tmp_path / "plänt")
    visit.tab("Compare")
    with visit.page.expect_file_chooser() as chooser:
        visit.press("Choose a folder")
    chooser.value.set_files(str(folder))
    visit.page.get_by_text("3 test clips of plänt are ready").wait_for()
    visit.page.get_by_text("plänt").first.wait_for()
    visit.press("Compare")
    visit.card("3 clips scored")
    visit.page.locator("#nf-clips").get_by_role("button", name="Clear").click()
    box = visit.page.locator("#nf-clips input[type=file]").locator("..").bounding_box()
    at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    data = {"items": [], "files": [str(folder / "hall 2")], "dragOperationsMask": 1}
    devtools = visit.context.new_cdp_session(visit.page)
    for kind in ("dragEnter", "dragOver", "drop"):
        devtools.send("Input.dispatchDragEvent", {"type": kind, "data": data, **at})
    visit.page.get_by_text("3 test clips of hall 2 are ready").wait_for()


def test_a_folder_without_clips_is_answered_in_words(visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "section_00_source_test_normal_0000.wav").write_bytes(b"")
    visit.tab("Compare")
    with visit.page.expect_file_chooser() as chooser:
        visit.press("Choose a folder")
    chooser.value.set_files(str(tmp_path / "test"))
    visit.page.get_by_text("test holds no test clips").wait_for()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("text", "not a sound that can be read"),
        ("channels", "has 8 channels"),
        ("rate", "8000 Hz"),
        ("silent", "is silent"),
        ("long", "lasts 180 minutes"),
    ],
)
def test_a_bad_recording_is_answered_in_words_and_the_server_lives_on(
    visit: Visit, bad_files: dict[str, Path], name: str, words: str
) -> None:
    visit.upload("Near: a recording", bad_files[name])
    # The box of an upload gives way to a player, even where the browser cannot draw the sound.
    block = visit.page.locator(".block:visible", has_text="Near: a recording").last
    block.get_by_role("button", name="Clear").wait_for()
    visit.press("Judge this recording")
    assert visit.card(words).get_attribute("role") == "alert"
    visit.complaints.clear()  # the browser's own decoder may have said what it thinks of the file
    judged(visit, "Fan, healthy")


def test_different_lengths_and_unknown_machines_are_answered_in_words(
    visit: Visit, bad_files: dict[str, Path]
) -> None:
    visit.press("Judge this recording")
    visit.card("There is no recording yet")
    visit.upload("Near: a recording", bad_files["near"])
    visit.page.get_by_text("Far microphone, in a file of its own").click()
    visit.upload("Far: the room", bad_files["short_far"])
    visit.page.get_by_role("button", name="Clear").nth(1).wait_for()
    visit.press("Judge this recording")
    visit.card("Near lasts 3.00 s, but far 1.00 s")
    visit.page.get_by_label("Machine", exact=True).fill("crane")
    visit.page.keyboard.press("Enter")
    visit.page.get_by_role("button", name="Clear").nth(1).click()
    visit.press("Judge this recording")
    visit.card("has no machine 'crane'")


@pytest.mark.parametrize(
    ("name", "words"),
    [("bomb", "would unpack to"), ("outside", "is not a path below"), ("stranger", "crane")],
)
def test_a_harmful_zip_is_answered_in_words(
    visit: Visit, bad_files: dict[str, Path], name: str, words: str
) -> None:
    visit.tab("Compare")
    visit.upload("Folder, zip or wav files", bad_files[name])
    visit.page.get_by_text(name).last.wait_for()
    visit.press("Compare")
    visit.card(words)
    visit.tab("Listen")
    judged(visit, "Fan, healthy")


def test_an_upload_beyond_the_limit_is_refused_by_the_server(visit: Visit, tmp_path: Path) -> None:
    path = tmp_path / "huge.zip"
    with path.open("wb") as file:
        file.truncate(101 << 20)
    visit.tab("Compare")
    visit.upload("Folder, zip or wav files", path)
    visit.page.get_by_text("exceed the maximum allowed size").first.wait_for()


def test_the_keyboard_alone_gets_a_verdict(visit: Visit) -> None:
    visit.page.get_by_role("tab", name="Listen").focus()
    for _ in range(40):
        visit.page.keyboard.press("Tab")
        focused = visit.page.evaluate("document.activeElement.innerText")
        if focused == "Fan, healthy":
            break
    assert focused == "Fan, healthy"
    visit.page.keyboard.press("Enter")
    visit.page.locator(".nf-gauge").wait_for()


def test_whatever_the_keyboard_reaches_has_a_name_and_a_verdict_is_announced(visit: Visit) -> None:
    judged(visit)
    live = visit.page.locator("[aria-live=polite]", has=visit.page.locator(".nf-gauge"))
    assert live.count() == 1
    devtools = visit.context.new_cdp_session(visit.page)
    for tab in TABS:
        visit.tab(tab)
        visit.page.get_by_role("tab", name=tab).focus()
        reached = []
        for _ in range(80):
            visit.page.keyboard.press("Tab")
            focused = devtools.send("Runtime.evaluate", {"expression": "document.activeElement"})
            node = devtools.send(
                "Accessibility.getPartialAXTree",
                {"objectId": focused["result"]["objectId"], "fetchRelatives": False},
            )["nodes"][0]
            if focused["result"]["description"].startswith("body"):
                break
            reached.append((node["role"]["value"], node.get("name", {}).get("value", "").strip()))
        assert len(reached) >= 3
        assert [control for control in reached if not control[1]] == []


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_nothing_serious_stands_in_the_way_of_anyone(
    browser: Any, served: Served, width: int, scheme: str
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    visit = Visit(browser, served, width=width, scheme=scheme)
    judged(visit)
    serious, overflowing = [], []
    for tab in TABS:
        visit.tab(tab)
        serious += [
            (tab, violation["id"], node["html"][:200], node["failureSummary"][:300])
            for violation in Axe().run(visit.page).response["violations"]
            if violation["impact"] in ("serious", "critical")
            for node in violation["nodes"]
        ]
        overflow = visit.page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        overflowing += [tab] if overflow > 0 else []
    assert not serious, "\n".join(map(str, serious))
    assert overflowing == []
    visit.context.close()
