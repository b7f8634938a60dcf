"""Pictures of the demo for the README, and how soon it paints and answers, in headless Chromium.

python -m benchmarks.demo_pictures --output_dir docs
"""

import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from benchmarks.demo_load import served
from nearfar.arguments import parse_arguments, script

FLAGS = ["--no-sandbox", "--disable-background-networking", "--disable-gpu"]
LOOKS = {  # name -> (width, height, colour scheme)
    "laptop_light": (1280, 1000, "light"),
    "laptop_dark": (1280, 1000, "dark"),
    "phone_light": (390, 1500, "light"),
    "phone_dark": (390, 1500, "dark"),
}
TABS = ("Enrol", "Compare", "About")
COLOURS = 128  # of a picture's palette


@dataclass(kw_only=True)
class PictureArguments:
    """Arguments of benchmarks.demo_pictures."""

    output_dir: Path = field(metadata={"help": "Gets one PNG for each look, and for each tab."})
    model: str | None = field(default=None, metadata={"help": "As app.py takes it."})
    example: str = field(default="Gearbox, faulty 2", metadata={"help": "The button to press."})


def main() -> None:
    """Serve the demo, look at it, print times."""
    args = parse_arguments(PictureArguments)
    chromium = shutil.which("chromium")
    if chromium is None:
        raise FileNotFoundError("There is no chromium on the PATH. Install Debian's package.")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as temporary,
        served(args.model, Path(temporary, "log")) as (url, _),
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        for name in LOOKS:
            times = look(browser, url, name, args)
            print(name, ", ".join(f"{key} {value:.2f} s" for key, value in times.items()))


def look(browser: Browser, url: str, name: str, args: PictureArguments) -> dict[str, float]:
    """Take the pictures of one look; return when it painted, rendered and answered, in seconds."""
    width, height, scheme = LOOKS[name]
    options: dict[str, Any] = {"color_scheme": scheme}
    context = browser.new_context(viewport={"width": width, "height": height}, **options)
    page = context.new_page()
    start = time.monotonic()
    page.goto(url)
    page.get_by_role("button", name="Judge this recording").wait_for()
    rendered = time.monotonic() - start
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    start = time.monotonic()
    page.get_by_role("button", name=args.example).click()
    page.locator(".nf-gauge").wait_for()
    answered = time.monotonic() - start
    page.locator(".nf-references li").first.wait_for()
    page.wait_for_timeout(1500)  # until the players know how long their sounds are
    picture(page, args.output_dir / f"demo_{name}.png")
    for tab in TABS:
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(500)
        picture(page, args.output_dir / f"demo_{name}_{tab.lower()}.png")
    context.close()
    return {"first paint": paint / 1000, "rendered": rendered, "answered": answered}


def picture(page: Any, path: Path) -> None:  # noqa: ANN401 - a Playwright page
    """Write what is on the screen as a small PNG."""
    page.screenshot(path=path)
    Image.open(path).convert("RGB").quantize(COLOURS).save(path, optimize=True)


if __name__ == "__main__":
    script(main)
