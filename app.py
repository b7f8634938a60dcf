"""The demo: hear a machine, see the verdict, enrol a machine of one's own, compare many clips.

python app.py --model runs/unis_2 --data_dir DATA
"""

import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from demo.actions import (
    HINT,
    USER_ERRORS,
    Actions,
    Answer,
    Session,
    comparison_report,
    enrolment_card,
    machines_table,
    said,
)
from demo.comparison import MAX_CLIPS, TEST_FOLDERS
from demo.detector import Detector
from demo.pictures import message
from demo.shelf import Shelf
from demo.sounds import FACTORY_FILE, FactorySounds, FolderSounds, NoSounds, Sounds
from nearfar.arguments import parse_arguments, script
from nearfar.hub import RUN_FILE

ROOT = Path(__file__).resolve().parent
STYLE = ROOT / "demo" / "page.css"
# In the head: there before Gradio measures which tabs fit, and not put below its own container.
NARROW = """\
<style>@media (max-width: 640px) {
.gradio-container .app { padding-left: 1rem !important; padding-right: 1rem !important; }
.tab-container button { padding-left: 0.6rem !important; padding-right: 0.6rem !important; }
}</style>"""
DEFAULT_MODELS = (ROOT / "runs" / "demo", ROOT / "checkpoints" / "quickstart")
MAX_UPLOAD = "100mb"
MAX_FOLDER_BYTES = 90 << 20  # the zip that a browser makes of a folder is an upload
MAX_QUEUE = 128
MAX_THREADS = 40
GRADIO = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    # After each request it would make a table of its last 10,000, for a page that is off here.
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": "1000000000",
    "GRADIO_ANALYTICS_MAX_EVENTS": "100",
}
# Requests that are begun at once: enough that no worker of `Actions` lacks one, or an explanation.
IN_HAND = {"listen": 12, "score": 12, "enrol": 2, "many clips": 1}
HEADER = """\
<header class="nf-header"><h1>nearfar</h1>
<p>Does this machine sound as it should? Give a recording; a detector that has only ever heard
normal running says how unusual it is.</p></header>"""
EXAMPLES_HINT = (
    "**Or try one:** simulated test clips, the first of each kind, not picked by result. A small "
    "detector misses some faults."
)
ENROL_HINT = """\
Record the machine while it runs **normally**: five minutes or more, best on several occasions, as
WAV or FLAC with one channel (near) or two (near, far). Nothing is trained: the recordings are cut
into windows of 10 s, and the windows become the references. They stay in this session only."""
COMPARE_HINT = f"""\
Give test clips whose names say what they are, and see how well normal and faulty ones come apart:
a **folder** or a **zip** with `<machine>/test/section_00_source_test_normal_0000_….wav` somewhere
in it (the challenge's layout), or **wav files** of one machine. At most {MAX_CLIPS} clips."""
# A screen reader says what comes, and a phone shows it.
ANNOUNCED = """\
element.setAttribute("aria-live", "polite");
watch("value", () => element.scrollIntoView({ block: "nearest" }));"""
FOLDER_CHOOSER = """\
<div class="nf-folder"><button type="button">Choose a folder</button>
<input type="file" webkitdirectory multiple hidden aria-label="Folder of test clips">
<span role="status"></span></div>"""
API_HINT = """\
### From code

Every action has a name; `Client(URL).view_api()` lists them with their parameters.

```python
from gradio_client import Client, handle_file

client = Client(URL)
client.predict(api_name="/machines")
client.predict("2026/fan/00", handle_file("near.wav"), None, api_name="/score")
client.predict("my pump", [handle_file("monday.wav")], api_name="/enroll")
client.predict([handle_file("test_clips.zip")], None, api_name="/compare")
```

A client that has enrolled a machine may score it as `local/<name>/00`; no other client can.

### What it cannot do

It knows the machines of its bank, recorded as they were. Another background or another place of the
microphone may sound like a fault, and a fault that sounds like normal running passes. A p-value
speaks of normal recordings like those set aside; a few of those cannot say much. It is no safety
device.
"""


@dataclass(kw_only=True)
class AppArguments:
    """Arguments of app.py."""

    model: str | None = field(
        default=None,
        metadata={"help": "A run folder or a Hub repository; None: runs/demo, or what ships."},
    )
    data_dir: Path | None = field(
        default=None,
        metadata={"help": "The recordings behind the bank, to listen to references and examples."},
    )
    port: int | None = field(default=None, metadata={"help": "None takes a free one from 7860 on."})
    host: str = field(
        default="127.0.0.1", metadata={"help": "0.0.0.0 lets other computers in; read the limits."}
    )


def build_demo(actions: Actions) -> gr.Blocks:
    """Return the page and its API; it starts nothing and loads nothing.

    Args:
        actions: What the page can do.
    """
    # delete_cache: every ten minutes what users uploaded more than an hour ago goes.
    demo = gr.Blocks(title="nearfar", analytics_enabled=False, delete_cache=(600, 3600))
    demo.queue(max_size=MAX_QUEUE, default_concurrency_limit=1)
    with demo:
        session = gr.State({}, time_to_live=3600)
        gr.HTML(HEADER)
        with gr.Tabs():
            with gr.Tab("Listen"):
                machine = _listen_tab(actions, session)
            with gr.Tab("Enrol"):
                _enrol_tab(actions, session, machine)
            with gr.Tab("Compare"):
                _compare_tab(actions)
            with gr.Tab("About"):
                _about_tab(actions)
    return demo


def _listen_tab(actions: Actions, session: gr.State) -> gr.Dropdown:
    """Build the tab and return its choice of machine."""

    def listen(
        machine: str | None, near: str | None, far: str | None, session: Session
    ) -> Iterator[list[Any]]:
        for answer in actions.listen(machine, near, far, session):
            yield _shown(answer)

    def score(
        machine: str | None, near: str | None, far: str | None, session: Session
    ) -> dict[str, Any]:
        with _said_to_client():
            return actions.judge(machine, near, far, session)[0].as_json()

    def machines(session: Session) -> list[dict[str, Any]]:
        return actions.machines(session)

    choices = actions.choices()
    with gr.Row(elem_classes="nf-columns"):
        with gr.Column(scale=2, min_width=300):
            machine = gr.Dropdown(
                choices, value=choices[0][1], label="Machine", allow_custom_value=True
            )
            near = _audio("Near: a recording at the machine, or one two-channel file")
            with gr.Accordion("Far microphone, in a file of its own", open=False):
                far = _audio("Far: the room, recorded at the same time")
            button = gr.Button("Judge this recording", variant="primary")
            examples = actions.sounds.examples()
            if examples:
                gr.Markdown(EXAMPLES_HINT)
            with gr.Row(elem_classes="nf-examples"):
                tries = [gr.Button(example.title, size="sm", min_width=90) for example in examples]
        with gr.Column(scale=3, min_width=300):
            verdict = gr.HTML(HINT, js_on_load=ANNOUNCED)
            panels = gr.HTML()
            references = gr.HTML()
    outputs = [verdict, panels, references]
    inputs = [machine, near, far, session]
    button.click(listen, inputs, outputs, **_private("listen"))
    for example, trial in zip(examples, tries, strict=True):
        # Both at once: the verdict does not wait until the page has loaded the recording.
        chosen = (example.machine, str(example.path), None)
        trial.click(lambda chosen=chosen: chosen, None, [machine, near, far], **_private(None))
        trial.click(partial(listen, *chosen), [session], outputs, **_private("listen"))
    _endpoint(score, inputs, [gr.JSON(visible=False)], "score", SCORE_TEXT, "score")
    _endpoint(machines, [session], [gr.JSON(visible=False)], "machines", MACHINES_TEXT, None)
    return machine


def _enrol_tab(actions: Actions, session: gr.State, machine: gr.Dropdown) -> None:
    def enrol(
        name: str | None, files: list[str] | None, recorded: str | None, session: Session
    ) -> list[Any]:
        given = [*(files or []), *([recorded] if recorded else [])]
        try:
            enrolment, session, archive = actions.enroll(name, given, session)
        except USER_ERRORS as error:
            return [message(said(error)), gr.skip(), session, gr.skip()]
        choice = gr.Dropdown(choices=actions.choices(session), value=enrolment.machine)
        return [
            enrolment_card(enrolment),
            gr.File(str(archive), visible=True),
            session,
            choice,
        ]

    def enroll(
        name: str, files: list[str], session: Session
    ) -> tuple[dict[str, Any], str, Session]:
        with _said_to_client():
            enrolment, session, archive = actions.enroll(name, files, session)
            return enrolment.as_json(), str(archive), session

    with gr.Row(elem_classes="nf-columns"):
        with gr.Column(scale=2, min_width=300):
            gr.Markdown(ENROL_HINT)
            name = gr.Textbox(label="Name of the machine", max_length=40, placeholder="Pump 3")
            files = _files("Recordings of normal sound", [".wav", ".flac"])
            with gr.Accordion("Record with this device", open=False):
                recorded = _audio("Recording of normal sound")
            button = gr.Button("Enrol this machine", variant="primary")
        with gr.Column(scale=3, min_width=300):
            answer = gr.HTML(
                message("What came of it appears here.", kind="idle"), js_on_load=ANNOUNCED
            )
            bank = gr.File(label="The machine's reference bank", visible=False)
    button.click(
        enrol,
        [name, files, recorded, session],
        [answer, bank, session, machine],
        **_private("enrol"),
    )
    outputs = [gr.JSON(visible=False), gr.File(visible=False), session]
    _endpoint(enroll, [name, files, session], outputs, "enroll", ENROLL_TEXT, "enrol")


def _compare_tab(actions: Actions) -> None:
    def show_comparison(
        files: list[str] | None,
        machine: str | None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - how Gradio hands it over
    ) -> list[Any]:
        try:
            comparison = actions.compare(files, machine, progress)
        except USER_ERRORS as error:
            return [message(said(error)), gr.File(visible=False)]
        return [comparison_report(comparison), gr.File(str(comparison.csv), visible=True)]

    def compare_clips(files: list[str], machine: str | None) -> tuple[dict[str, Any], str]:
        with _said_to_client():
            comparison = actions.compare(files, machine, lambda _: None)
            return comparison.metrics, str(comparison.csv)

    with gr.Row(elem_classes="nf-columns"):
        with gr.Column(scale=2, min_width=300):
            gr.Markdown(COMPARE_HINT)
            files = _files("Folder, zip or wav files", [".zip", ".wav"], elem_id="nf-clips")
            gr.HTML(
                html_template=FOLDER_CHOOSER,
                js_on_load=(ROOT / "demo" / "folder.js").read_text(encoding="utf-8"),
                box="nf-clips",
                folders=list(TEST_FOLDERS),
                max_clips=MAX_CLIPS,
                max_bytes=MAX_FOLDER_BYTES,
            )
            choices = actions.choices()
            machine = gr.Dropdown(
                choices,
                value=choices[0][1],
                label="Machine of loose wav files",
                allow_custom_value=True,
            )
            button = gr.Button("Compare", variant="primary")
        with gr.Column(scale=3, min_width=300):
            report = gr.HTML(message("Table, curves and histograms appear here.", kind="idle"))
            csv = gr.File(label="All scores, as CSV", visible=False)
    button.click(show_comparison, [files, machine], [report, csv], **_private("many clips"))
    outputs = [gr.JSON(visible=False), gr.File(visible=False)]
    _endpoint(compare_clips, [files, machine], outputs, "compare", COMPARE_TEXT, "many clips")


def _about_tab(actions: Actions) -> None:
    def card() -> str:
        return actions.detector.card

    gr.HTML(machines_table(actions))
    with gr.Accordion("Model card", open=False):
        gr.Markdown(_without_pictures(actions.detector.card), header_links=False)
    gr.Markdown(API_HINT)
    _endpoint(card, [], [gr.Markdown(visible=False)], "card", CARD_TEXT, None)


SCORE_TEXT = """Judge a recording: machine (full name or bare type), near (a WAV or FLAC file; of \
two channels the first is near, the second far), far (or None). Returns the verdict: anomaly_score \
(higher is more anomalous), threshold, anomalous, p_value, windows, nearest_references and more."""
MACHINES_TEXT = "List the machines that can be judged, those of this session included."
ENROLL_TEXT = """Enrol a machine for this client's session: name, and files of its normal sound \
(one minute or more). Returns what came of it, and the reference bank as a zip."""
COMPARE_TEXT = """Score test clips: a list with one zip in the official layout, or of wav files of \
one machine. Returns the metrics, and all scores as CSV."""
CARD_TEXT = "Return the model card, in Markdown."


def _audio(label: str) -> gr.Audio:
    # filepath: the file as it came, for a decoder of ours; nothing is converted.
    return gr.Audio(type="filepath", label=label, editable=False, buttons=[])


def _files(label: str, types: Sequence[str], elem_id: str | None = None) -> gr.File:
    return gr.File(
        label=label, file_count="multiple", file_types=list(types), height=160, elem_id=elem_id
    )


def _shown(answer: Answer) -> list[Any]:
    return [gr.skip() if part is None else part for part in answer]


class _said_to_client:  # noqa: N801 - used like a function
    """Hand a user's error to the API's client in its own words."""

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        """Raise what Gradio passes on."""
        if isinstance(error, USER_ERRORS):
            raise gr.Error(said(error), print_exception=False) from error


def _private(group: str | None) -> dict[str, Any]:
    """Return the options of an event of the page; None is for what needs no queue."""
    if group is None:
        return {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
    return {"api_visibility": "private", **_limited(group)}


def _limited(group: str) -> dict[str, Any]:
    """Return the options of an event of which only so many run at once."""
    return {"concurrency_id": group, "concurrency_limit": IN_HAND[group]}


def _endpoint(
    function: Callable[..., Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    name: str,
    text: str,
    group: str | None,
) -> None:
    """Give the API an action that no button of the page has."""
    limits = {} if group is None else _limited(group)
    gr.Button(visible=False).click(
        function, list(inputs), list(outputs), api_name=name, api_description=text, **limits
    )


def _without_pictures(card: str) -> str:
    """Return Markdown that makes a browser ask no other server for a picture."""
    return re.sub(r"!\[[^\]]*\]\([^)]*\)|<img[^>]*>", "", card)


def launch_options(actions: Actions) -> dict[str, Any]:
    """Return what every start of the page has in common, as `Blocks.launch` takes it."""
    system = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
    return {
        "theme": gr.themes.Default(
            primary_hue="teal",
            neutral_hue="slate",
            font=system,
            font_mono=("ui-monospace", "Consolas", "monospace"),
        ).set(  # enough contrast for everyone
            body_text_color_subdued="*neutral_600",
            body_text_color_subdued_dark="*neutral_300",
            block_label_text_color="*neutral_700",
            block_title_text_color="*neutral_700",
            input_placeholder_color="*neutral_500",
            input_placeholder_color_dark="*neutral_400",
            button_primary_background_fill="*primary_700",
            button_primary_background_fill_hover="*primary_800",
            button_primary_background_fill_dark="*primary_700",
            button_primary_background_fill_hover_dark="*primary_800",
        ),
        "css_paths": STYLE,
        "head": NARROW,
        "allowed_paths": [str(actions.shelf.folder)],
        "max_file_size": MAX_UPLOAD,
        "max_threads": MAX_THREADS,
        "state_session_capacity": 500,
        "share": False,
        "ssr_mode": False,
        "pwa": False,
        "run_history": False,
        "enable_monitoring": False,
        "show_error": True,
        "footer_links": ["api"],
    }


def default_model() -> Path:
    """Return the run folder that is shown where none is named."""
    for folder in DEFAULT_MODELS:
        if (folder / RUN_FILE).is_file():
            return folder
    listed = " nor ".join(str(folder.relative_to(ROOT)) for folder in DEFAULT_MODELS)
    raise FileNotFoundError(f"There is neither {listed}. Run make demo, or give --model.")


def sounds_of(detector: Detector, model: Path, data_dir: Path | None, folder: Path) -> Sounds:
    """Return where the bank's recordings can be heard.

    Args:
        detector: Of the page.
        model: Its folder; a `factory.json` in it says which simulated factory it is of, whose clips
            are simulated where the extra "factory" is installed.
        data_dir: Where the recordings lie; None tries what the recipe says.
        folder: Keeps simulated clips.
    """
    said_by_recipe = detector.scorer.recipe.get("data_dir")
    year = int(detector.scorer.recipe["year"])
    if data_dir is not None:
        return FolderSounds(data_dir, year=year)
    if (model / FACTORY_FILE).is_file() and find_spec("pyroomacoustics"):
        return FactorySounds(model / FACTORY_FILE, folder)
    if said_by_recipe and Path(said_by_recipe).is_dir():
        return FolderSounds(Path(said_by_recipe), year=year)
    return NoSounds()


def main() -> None:
    """Load a model, build the page, serve it."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    for name, value in GRADIO.items():
        os.environ.setdefault(name, value)
    args = parse_arguments(AppArguments)
    if args.port is not None and not 0 < args.port < 65536:
        raise ValueError(f"--port {args.port} is not a port; they go from 1 to 65535.")
    model = default_model() if args.model is None else args.model
    detector = Detector.load(model)
    with tempfile.TemporaryDirectory(prefix="nearfar_demo_") as temporary:
        folder = Path(temporary)
        sounds = sounds_of(detector, Path(model), args.data_dir, folder / "simulated")
        actions = Actions(detector, sounds, Shelf(folder / "shelf"))
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // actions.workers))
        demo = build_demo(actions)
        _launch(demo, args, launch_options(actions))


def _launch(demo: gr.Blocks, args: AppArguments, options: dict[str, Any]) -> None:
    """Serve the page until it is interrupted."""
    try:
        demo.launch(server_name=args.host, server_port=args.port, **options)
    except OSError as error:
        if "empty port" not in str(error):
            raise
        tried = "All ports from 7860 on are" if args.port is None else f"Port {args.port} is"
        raise OSError(f"{tried} taken on {args.host}. Give another --port.") from error


if __name__ == "__main__":
    script(main)
