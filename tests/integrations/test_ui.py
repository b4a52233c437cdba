"""The window: what it may reach, what it asks of the library, and the whole way in a real browser.

The browser's part runs where gradio and Playwright are installed and a Chromium is there:
``pip install 'paramerge[ui]' playwright`` and ``CHROMIUM=/usr/bin/chromium``.
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from baking import lora_file, para_file, random_bases, random_factors, shapes_of, small_model

import paramerge as pm
from paramerge.cli.main import main
from paramerge.errors import UsageError
from paramerge.ui.drawing import DrawForm, drawn, numbers
from paramerge.ui.forms import BakeForm, MergeForm, Row
from paramerge.ui.jobs import Job, Stopped
from paramerge.ui.library import Library, read_library
from paramerge.ui.words import boxed, file_text, plan_text, report_text

EVIL = "<img src=x onerror=alert(1)>.safetensors"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
in_browser = pytest.mark.skipif(
    not (find_spec("gradio") and find_spec("playwright")),
    reason="no browser to look with: gradio, playwright and a Chromium",
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bases, three adapters, a broken file, a name that is markup, and a link that leads out."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("one", "two"):
        small_model(folder / f"{name}.safetensors", "sdxl", dtype="F16")
    shapes = shapes_of(folder / "one.safetensors")
    layers = [name for name in shapes if name.endswith("attn2.to_q")][:12]
    for seed, name in enumerate(("cat", "dog")):
        para_file(folder / f"{name}.safetensors", random_bases(shapes, layers, 3, seed), "sdxl")
    lora_file(folder / "style.safetensors", random_factors(shapes, layers, 3, 5))
    shutil.copy(folder / "cat.safetensors", folder / EVIL)
    (folder / "broken.safetensors").write_bytes(b"\x00" * 40)
    outside = tmp_path_factory.mktemp("outside") / "secret.safetensors"
    shutil.copy(folder / "cat.safetensors", outside)
    (folder / "link.safetensors").symlink_to(outside)
    return folder


@pytest.fixture
def library(models: Path, tmp_path: Path) -> Library:
    return read_library([models], tmp_path)


def test_only_what_lies_in_the_folders_is_there(models: Path, library: Library) -> None:
    assert {"one.safetensors", "two.safetensors"} <= set(library.bases)
    assert {"cat.safetensors", "style.safetensors", EVIL, "butterfly"} <= set(library.adapters)
    assert "broken.safetensors" in library.others
    assert "link.safetensors" not in library.all
    for name in ("../outside/secret.safetensors", str(models / "cat.safetensors"), "", None):
        with pytest.raises(UsageError):
            library.adapter(name)


@pytest.mark.parametrize("name", ["", "../x", "/tmp/x", "a/b", ".hidden", "a\\b", "x" * 300])
def test_outputs_stay_in_their_folder(library: Library, name: str) -> None:
    with pytest.raises(UsageError):
        library.new_file(name)


def test_an_ending_is_added(library: Library) -> None:
    assert library.new_file("new").name == library.new_file("new.safetensors").name == "new.safetensors"


def call(command: str) -> None:
    words = shlex.split(command)
    assert words[0] == "paramerge"
    with pytest.raises(SystemExit) as caught:
        main(words[1:])
    assert not caught.value.code


BAKES = {
    "plain": BakeForm("one.safetensors", (Row("cat.safetensors"),), output="o"),
    "all": BakeForm(
        "one.safetensors",
        (
            Row("cat.safetensors", 0.5),
            Row(None),
            Row("dog.safetensors"),
            Row("style.safetensors", 0.8, "IN04=0"),
        ),
        "sequential", 0.5, "bf16", "unet.*attn2* text_encoder", output="o",
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", BAKES.values(), ids=BAKES)
def test_the_command_writes_the_same_bytes(library: Library, form: BakeForm) -> None:
    path = library.new_file(form.output)
    form.plan(library).write(path)
    mine = path.read_bytes()
    path.unlink()
    call(form.command(library))
    assert path.read_bytes() == mine


def test_texts_are_the_command_lines(library: Library, capsys: pytest.CaptureFixture[str]) -> None:
    """All of a plan, a report and a file's facts, and nothing printed."""
    plan = BAKES["plain"].plan(library)
    path = library.new_file("o")
    assert "cat.safetensors" in plan_text(plan, path) and "nothing was written" in plan_text(plan, path)
    assert "12 layers of one.safetensors changed" in report_text(plan, plan.write(path))
    assert "para" in file_text(library.any("cat.safetensors"))
    assert not capsys.readouterr().out


def test_a_merges_command_writes_the_same_bytes(library: Library) -> None:
    form = MergeForm(
        ("one.safetensors", "two.safetensors", None), "slerp", "weights=0.7,0.3", "MID=0.9",
        (Row("style.safetensors", 0.4),), "fp16", "m",
    )  # fmt: skip
    path = library.new_file(form.output)
    form.plan(library).write(path)
    mine = path.read_bytes()
    path.unlink()
    call(form.command(library))
    assert path.read_bytes() == mine


def test_a_job_that_is_stopped_leaves_nothing(library: Library) -> None:
    path = library.new_file("stopped")
    job = Job(lambda progress: BAKES["plain"].plan(library).write(path, progress))
    job.stop()
    list(job.states(0.01))
    with pytest.raises(Stopped):
        job.result()
    assert not list(library.output.iterdir())


def test_progress_and_faults_of_a_job() -> None:
    def half(progress: Any) -> None:
        progress(1, 2)
        time.sleep(0.1)
        raise UsageError("no")

    job = Job(half)
    states = list(job.states(0.01))
    assert 0.5 in [state.share for state in states]
    with pytest.raises(UsageError):
        job.result()


def test_text_is_no_markup() -> None:
    assert "<img" not in boxed(EVIL)


@pytest.mark.parametrize(
    "fault",
    [
        lambda library: numbers("0, x"),
        lambda library: drawn(BAKES["plain"], DrawForm(""), library, print),
        lambda library: drawn(
            BAKES["plain"], DrawForm("a", "", 0, 1, 1, (0.0,) * 9, (0.0,) * 9), library, print
        ),
        lambda library: drawn(BAKES["plain"], DrawForm("a", down=(0.0, 1.0)), library, print),
    ],
)
def test_what_cannot_be_drawn(library: Library, fault: Any) -> None:
    with pytest.raises(UsageError):
        fault(library)


# -- in a browser


class Browser:
    """The page of a window, by what a person does there."""

    def __init__(self, page: Any, address: str) -> None:
        self.page = page
        self.outside: list[str] = []
        self.faults: list[str] = []
        page.on("request", self._see)
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("dialog", lambda dialog: self.faults.append(dialog.message))
        page.goto(address)
        page.wait_for_selector("#pm-base input", timeout=60_000)

    def _see(self, request: Any) -> None:
        if not request.url.startswith(("http://127.0.0.1", "data:", "blob:")):
            self.outside.append(request.url)

    def choose(self, place: str, text: str, nth: int = 0) -> None:
        box = self.page.locator(f"{place} input").nth(nth)
        box.click()
        box.fill(text)
        self.page.locator("ul[role=listbox] li", has_text=text).first.click()

    def type(self, label: str, text: str) -> None:
        box = self.page.get_by_label(label).first
        box.fill(text)
        box.press("Tab")

    def wait(self, place: str, text: str) -> str:
        self.page.wait_for_function(
            "([place, text]) => document.querySelector(place)?.innerText.includes(text)",
            arg=[place, text],
            timeout=60_000,
        )
        return str(self.page.inner_text(place))


@pytest.fixture(scope="module")
def window(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, Any]]:
    from playwright.sync_api import sync_playwright

    from paramerge.ui.serve import serve

    output = tmp_path_factory.mktemp("output")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = serve([models], output, port=port, block=False)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM or None, args=["--no-sandbox"])
        yield address, output, browser
        browser.close()


@pytest.fixture
def page(window: tuple[str, Path, Any]) -> Iterator[Browser]:
    address, output, browser = window
    for old in output.iterdir():
        old.unlink()
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    found = Browser(context.new_page(), address)
    yield found
    assert not found.outside and not found.faults
    context.close()


@in_browser
def test_from_picking_to_the_baked_file(page: Browser, window: Any, models: Path, tmp_path: Path) -> None:
    page.choose("#pm-base", "one.safetensors")
    page.choose(".pm-adapter", "cat.safetensors")
    assert "unet 12" in page.wait("#pm-plan", "sdxl")
    page.choose(".pm-adapter", "style.safetensors", 1)
    page.wait("#pm-plan", "style.safetensors")
    assert "--adapter" in page.page.inner_text("#pm-command")
    page.page.click("#pm-bake")
    page.wait("#pm-result", "12 layers of one.safetensors changed")
    adapters = [models / "cat.safetensors", models / "style.safetensors"]
    pm.bake(models / "one.safetensors", adapters, tmp_path / "same.safetensors")
    assert (window[1] / "baked.safetensors").read_bytes() == (tmp_path / "same.safetensors").read_bytes()
    page.page.click("#pm-bake")  # it is there now, and is not replaced unasked
    page.wait("#pm-result", "overwrite")


@in_browser
def test_stop_leaves_nothing(page: Browser, window: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write = pm.Plan.write

    def slowly(self: pm.Plan, output: Path, progress: Any, **more: Any) -> Any:
        def slow(done: int, total: int) -> None:
            time.sleep(0.5)
            progress(done, total)

        return write(self, output, slow, **more)

    monkeypatch.setattr(pm.Plan, "write", slowly)
    page.choose("#pm-base", "one.safetensors")
    page.choose(".pm-adapter", "cat.safetensors")
    page.wait("#pm-plan", "sdxl")
    page.page.click("#pm-bake")
    page.wait("#pm-progress", "%")
    page.page.click("#pm-stop")
    page.wait("#pm-result", "stopped: nothing was written")
    assert not list(window[1].iterdir())


@in_browser
def test_a_bad_file_and_a_name_that_is_markup(page: Browser) -> None:
    page.page.get_by_role("tab", name="Inspect").click()
    page.choose("#pm-file", "broken.safetensors")
    page.wait("#pm-facts", "broken.safetensors")
    page.page.get_by_role("tab", name="Bake").click()
    page.choose("#pm-base", "two.safetensors")
    page.choose(".pm-adapter", EVIL)
    assert "<img src=x" in page.wait("#pm-plan", "sdxl")


@in_browser
def test_a_wrong_choice_is_said_in_our_words(page: Browser) -> None:
    page.choose("#pm-base", "one.safetensors")
    page.choose(".pm-adapter", "butterfly")
    text = page.wait("#pm-plan", "next")
    assert "emoji-diffusion" in text or "sd15" in text or "expected" in text


@in_browser
def test_two_tabs_at_once(page: Browser, window: Any) -> None:
    """Each has its own choice; who is second to write a name is told so."""
    context = page.page.context
    other = Browser(context.new_page(), window[0])
    for tab, adapter in ((page, "cat.safetensors"), (other, "dog.safetensors")):
        tab.choose("#pm-base", "one.safetensors")
        tab.choose(".pm-adapter", adapter)
        tab.wait("#pm-plan", adapter)
    page.page.click("#pm-bake")
    other.page.click("#pm-bake")
    texts = []
    for tab in (page, other):
        tab.page.wait_for_selector("#pm-result [data-kind]", timeout=60_000)
        texts.append(tab.page.inner_text("#pm-result"))
    assert sum("12 layers of one.safetensors changed" in text for text in texts) >= 1
    assert len(list(window[1].iterdir())) == 1


@in_browser
def test_comparison_and_merge(page: Browser, window: Any) -> None:
    page.choose("#pm-base", "one.safetensors")
    page.choose(".pm-adapter", "cat.safetensors")
    page.choose(".pm-adapter", "dog.safetensors", 1)
    page.page.get_by_text("Do they stand in each other's way?").click()
    page.page.get_by_role("button", name="Compare these adapters").click()
    page.page.wait_for_selector("#pm-report iframe", timeout=60_000)
    frame = page.page.frame_locator("#pm-report iframe")
    frame.locator("body", has_text="dog.safetensors").wait_for(timeout=60_000)
    page.page.get_by_role("tab", name="Merge checkpoints").click()
    for place, name in enumerate(("one.safetensors", "two.safetensors")):
        box = page.page.get_by_label(f"checkpoint {'ab'[place]}")
        box.click()
        box.fill(name)
        page.page.locator("ul[role=listbox] li", has_text=name).first.click()
    page.page.click("#pm-merge")
    page.wait("#pm-merge-result", "merged")
    assert (window[1] / "merged.safetensors").exists()


@in_browser
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 1600])
def test_narrow_and_wide_light_and_dark(window: Any, tmp_path: Path, dark: bool, width: int) -> None:
    """Nothing is wider than the window, in any of them."""
    context = window[2].new_context(
        viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light"
    )
    tab = Browser(context.new_page(), window[0])
    tab.choose("#pm-base", "one.safetensors")
    tab.choose(".pm-adapter", "cat.safetensors")
    tab.wait("#pm-plan", "sdxl")
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    shot = os.environ.get("PICTURES")
    if shot:
        tab.page.screenshot(path=f"{shot}/ui-{width}-{'dark' if dark else 'light'}.png", full_page=True)
    context.close()


@in_browser
def test_nothing_else_of_this_machine_is_served(window: Any, models: Path) -> None:
    import urllib.error
    import urllib.request

    for path in ("/etc/passwd", str(models / "cat.safetensors"), "pyproject.toml"):
        for route in ("file=", "gradio_api/file="):
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(f"{window[0]}{route}{path}")
            assert caught.value.code in (403, 404)
