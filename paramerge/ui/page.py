"""The page: choices on the left, what they mean on the right, and the work with its progress."""

from __future__ import annotations

import html
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from paramerge.bake.plan import Plan
from paramerge.compare.call import compare
from paramerge.compare.report import render_report
from paramerge.errors import ParamergeError
from paramerge.merge.methods.registry import REGISTRY as METHODS
from paramerge.ui.drawing import DrawForm, drawn, numbers
from paramerge.ui.forms import DTYPES, BakeForm, MergeForm, Row
from paramerge.ui.jobs import Job, Jobs, Stopped
from paramerge.ui.library import Library
from paramerge.ui.words import bar, boxed, fault, file_text, plan_text, report_text

ROWS = 6
"""Adapters that a page can hold."""
PER_ROW = 3

_NO_BAKE = "Choose a base and an adapter: the plan appears here."
_NO_MERGE = "Choose two checkpoints: the plan appears here."
_COMMAND = "the same on the command line"

STYLE = """
.pm-text { white-space: pre; overflow-x: auto; font-size: 13px; line-height: 1.35; margin: 0;
  padding: 10px; border: 1px solid var(--border-color-primary); border-radius: 8px; }
.pm-error { white-space: pre-wrap; overflow-wrap: anywhere; border-color: #c0392b; border-left-width: 6px; }
.pm-done { border-color: #2e8b57; border-left-width: 6px; }
.pm-bar { position: relative; height: 24px; border: 1px solid var(--border-color-primary); border-radius: 8px;
  overflow: hidden; }
.pm-bar div { height: 100%; background: #4a7fd6; transition: width .2s; }
.pm-bar span { position: absolute; inset: 0; text-align: center; font-size: 13px; line-height: 22px; }
.pm-report { width: 100%; height: 900px; border: 0; background: white; border-radius: 8px; }
"""


class Page:
    """The page on one library; ``read`` looks at the folders anew."""

    def __init__(self, read: Callable[[], Library]) -> None:
        self._read = read
        self._library = read()
        self._jobs = Jobs()

    def blocks(self) -> gr.Blocks:
        """The whole page."""
        with gr.Blocks(title="paramerge", analytics_enabled=False, fill_width=True) as page:
            page_id = gr.State(lambda: uuid.uuid4().hex, delete_callback=self._jobs.stop)
            with gr.Row():
                gr.Markdown("## paramerge\nAdapters into checkpoints, exactly. Nothing leaves this machine.")
                refresh = gr.Button("Look at the folders again", size="sm", scale=0, min_width=180)
            lists: list[gr.Dropdown] = []
            with gr.Tab("Bake"):
                self._bake_tab(page_id, lists)
            with gr.Tab("Merge checkpoints"):
                self._merge_tab(page_id, lists)
            with gr.Tab("Inspect"):
                self._inspect_tab(lists)
            refresh.click(lambda: self._lists(lists), None, lists, queue=False)
            page.load(lambda: self._lists(lists), None, lists, queue=False)
            page.unload(lambda: None)
        return page

    def _lists(self, lists: list[gr.Dropdown]) -> list[Any]:
        self._library = self._read()
        return [gr.update(choices=self._choices(each.elem_classes[0])) for each in lists]

    def _choices(self, kind: str) -> list[str]:
        files = {"pm-base": self._library.bases, "pm-adapter": self._library.adapters}.get(kind)
        return list(self._library.all if files is None else files)

    def _list(self, label: str, kind: str, lists: list[gr.Dropdown], **more: Any) -> gr.Dropdown:
        found = gr.Dropdown(self._choices(kind), label=label, value=None, elem_classes=[kind], **more)
        lists.append(found)
        return found

    def _adapter_rows(self, lists: list[gr.Dropdown], shown: int) -> list[gr.components.Component]:
        """Rows with a list, a slider and block weights; those that are not needed yet are hidden."""
        parts: list[gr.components.Component] = []
        groups = []
        for place in range(ROWS):
            with gr.Row(visible=place < shown) as group:
                adapter = self._list(f"adapter {place + 1}", "pm-adapter", lists, scale=3, min_width=180)
                strength = gr.Slider(-2, 2, 1, step=0.05, label="strength", scale=2, min_width=160)
                blocks = gr.Textbox(label="blocks", placeholder="IN04=0.5,OUT00=0", scale=2, min_width=140)
            groups.append(group)
            parts += [adapter, strength, blocks]
        more, count = gr.Button("Add an adapter", size="sm"), gr.State(shown)
        more.click(
            lambda n: [min(n + 1, ROWS), *(gr.update(visible=place <= n) for place in range(ROWS))],
            count,
            [count, *groups],
            queue=False,
        )
        return parts

    def _bake_tab(self, page_id: gr.State, lists: list[gr.Dropdown]) -> None:
        with gr.Row():
            with gr.Column(min_width=320):
                base = self._list("base checkpoint", "pm-base", lists, elem_id="pm-base")
                rows = self._adapter_rows(lists, shown=2)
                with gr.Accordion("Options", open=False):
                    merge = gr.Radio(["joint", "sequential"], value="joint", label="PaRas beside each other")
                    gamma = gr.Slider(0, 1, 0, step=0.01, label="rank boundary gamma (0: none)")
                    dtype = gr.Dropdown(list(DTYPES), value="keep", label="dtype of the output")
                    only = gr.Textbox(label="only (components or patterns)", placeholder="unet.*attn2*")
                    unmatched = gr.Checkbox(label="go on where keys of an adapter land nowhere")
                output = gr.Textbox("baked.safetensors", label=f"output, in {self._library.output}")
                overwrite = gr.Checkbox(label="replace a file of this name")
                with gr.Row():
                    go = gr.Button("Bake", variant="primary", elem_id="pm-bake")
                    stop = gr.Button("Stop", variant="stop", elem_id="pm-stop")
            with gr.Column(min_width=320):
                progress = gr.HTML(elem_id="pm-progress")
                result = gr.HTML(elem_id="pm-result")
                plan = gr.HTML(boxed(_NO_BAKE), elem_id="pm-plan")
                command = _command("pm-command")
        inputs = [base, *rows, merge, gamma, dtype, only, unmatched, output, overwrite]
        for part in inputs:
            part.change(self._show_bake, inputs, [plan, command], queue=False, show_progress="hidden")
        go.click(self._bake, [page_id, *inputs], [progress, result], concurrency_limit=4)
        stop.click(self._jobs.stop, page_id, None, queue=False)
        self._compare_and_draw(page_id, inputs, lists)

    def _compare_and_draw(self, page_id: gr.State, inputs: list[Any], lists: list[gr.Dropdown]) -> None:
        with gr.Accordion("Do they stand in each other's way?", open=False):
            look, report = gr.Button("Compare these adapters"), gr.HTML(elem_id="pm-report")
            look.click(self._compare, inputs, report)
        with gr.Accordion("Draw before and after", open=False):
            with gr.Row():
                prompt = gr.Textbox(label="prompt", scale=3, min_width=240, elem_id="pm-prompt")
                seed = gr.Number(0, label="seed", precision=0, min_width=90)
                steps = gr.Slider(1, 100, 25, step=1, label="steps", min_width=140)
                guidance = gr.Slider(1, 15, 7.5, step=0.5, label="guidance", min_width=140)
            with gr.Row():
                across = gr.Textbox(label="strengths of adapter 1, across", placeholder="0, 0.5, 1")
                down = gr.Textbox(label="strengths of adapter 2, down", placeholder="0, 0.5, 1")
            draw = gr.Button("Draw", elem_id="pm-draw")
            status, picture = gr.HTML(), gr.Image(label="pictures", interactive=False, elem_id="pm-picture")
            more = [prompt, seed, steps, guidance, across, down]
            draw.click(self._draw, [page_id, *more, *inputs], [status, picture])

    def _merge_tab(self, page_id: gr.State, lists: list[gr.Dropdown]) -> None:
        with gr.Row():
            with gr.Column(min_width=320):
                models = [self._list(f"checkpoint {name}", "pm-base", lists) for name in "abc"]
                method = gr.Dropdown(
                    [each.name for each in METHODS.all()], value="weighted-sum", label="method"
                )
                parameters = gr.Textbox(label="its parameters", placeholder="weights=0.7,0.3")
                blocks = gr.Textbox(label="block weights", placeholder="IN04=0.5 or a vector of numbers")
                rows = self._adapter_rows(lists, shown=0)
                dtype = gr.Dropdown(list(DTYPES), value="keep", label="dtype of the output")
                output = gr.Textbox("merged.safetensors", label=f"output, in {self._library.output}")
                overwrite = gr.Checkbox(label="replace a file of this name")
                with gr.Row():
                    go = gr.Button("Merge", variant="primary", elem_id="pm-merge")
                    stop = gr.Button("Stop", variant="stop")
            with gr.Column(min_width=320):
                progress, result = gr.HTML(), gr.HTML(elem_id="pm-merge-result")
                plan = gr.HTML(boxed(_NO_MERGE))
                command = _command("pm-merge-command")
        inputs = [*models, method, parameters, blocks, *rows, dtype, output, overwrite]
        for part in inputs:
            part.change(self._show_merge, inputs, [plan, command], queue=False, show_progress="hidden")
        go.click(self._merge, [page_id, *inputs], [progress, result], concurrency_limit=4)
        stop.click(self._jobs.stop, page_id, None, queue=False)

    def _inspect_tab(self, lists: list[gr.Dropdown]) -> None:
        chosen = self._list("file", "pm-any", lists, elem_id="pm-file")
        text = gr.HTML(elem_id="pm-facts")
        chosen.change(self._inspect, chosen, text, queue=False)

    # -- what the parts of the page call

    def _show_bake(self, *values: Any) -> tuple[str, str]:
        form = bake_form(values)
        if not form.base or not form.chosen:
            return boxed(_NO_BAKE), ""
        return self._shown(lambda: form.plan(self._library), lambda: form.command(self._library), form.output)

    def _show_merge(self, *values: Any) -> tuple[str, str]:
        form = merge_form(values)
        if not all(form.models[:2]):
            return boxed(_NO_MERGE), ""
        return self._shown(lambda: form.plan(self._library), lambda: form.command(self._library), form.output)

    def _shown(self, plan: Callable[[], Plan], command: Callable[[], str], output: str) -> tuple[str, str]:
        try:
            text = plan_text(plan(), self._library.new_file(output))
            return boxed(text), command()
        except ParamergeError as error:
            return boxed(fault(error), "error"), ""

    def _bake(self, page_id: str, *values: Any) -> Iterator[tuple[str, str]]:
        form = bake_form(values)
        yield from self._write(page_id, lambda: form.plan(self._library), form.output, form.overwrite)

    def _merge(self, page_id: str, *values: Any) -> Iterator[tuple[str, str]]:
        form = merge_form(values)
        yield from self._write(page_id, lambda: form.plan(self._library), form.output, form.overwrite)

    def _write(
        self, page_id: str, planned: Callable[[], Plan], output: str, overwrite: bool
    ) -> Iterator[tuple[str, str]]:
        """Carry a plan out, with its progress; the last thing shown is the report or the fault."""
        try:
            plan = planned()
            path = self._library.new_file(output)
        except ParamergeError as error:
            yield "", boxed(fault(error), "error")
            return
        job = Job(lambda progress: plan.write(path, progress, overwrite=overwrite))
        self._jobs.begin(page_id, job)  # type: ignore[arg-type]
        for state in job.states():
            yield bar(state), ""
        try:
            yield "", boxed(report_text(plan, job.result()), "done")
        except Stopped:
            yield "", boxed("stopped: nothing was written", "error")
        except Exception as error:
            yield "", boxed(fault(error), "error")

    def _compare(self, *values: Any) -> str:
        form = bake_form(values)
        try:
            paths = [self._library.adapter(row.name) for row in form.chosen]
            page = render_report(compare(paths))
        except ParamergeError as error:
            return boxed(fault(error), "error")
        # in a frame of its own without rights: the report is a whole page
        return f'<iframe class="pm-report" sandbox="allow-scripts" srcdoc="{html.escape(page)}"></iframe>'

    def _draw(self, page_id: str, *values: Any) -> Iterator[tuple[str, Any]]:
        prompt, seed, steps, guidance, across, down, *others = values
        form = bake_form(others)
        try:
            request = DrawForm(
                prompt or "", "", int(seed or 0), int(steps), guidance, numbers(across), numbers(down)
            )
        except ParamergeError as error:
            yield boxed(fault(error), "error"), None
            return
        job = Job(lambda progress: drawn(form, request, self._library, progress))
        self._jobs.begin(page_id, job)  # type: ignore[arg-type]
        for state in job.states():
            yield bar(state), None
        try:
            yield "", job.result()
        except Stopped:
            yield boxed("stopped", "error"), None
        except Exception as error:
            yield boxed(fault(error), "error"), None

    def _inspect(self, name: str | None) -> str:
        if not name:
            return ""
        try:
            return boxed(file_text(self._library.any(name)))
        except ParamergeError as error:
            return boxed(fault(error), "error")


def _command(name: str) -> gr.Code:
    return gr.Code(label=_COMMAND, language="shell", wrap_lines=True, lines=2, max_lines=8, elem_id=name)


def bake_form(values: Any) -> BakeForm:
    """The form from the values of the page's parts, in their order."""
    base, *rest = values
    merge, gamma, dtype, only, unmatched, output, overwrite = rest[ROWS * PER_ROW :]
    return BakeForm(
        base, _rows(rest), merge, float(gamma or 0), dtype, only or "", bool(unmatched), output or "",
        bool(overwrite),
    )  # fmt: skip


def merge_form(values: Any) -> MergeForm:
    """The form from the values of the page's parts, in their order."""
    first, second, third, method, parameters, blocks, *rest = values
    dtype, output, overwrite = rest[ROWS * PER_ROW :]
    return MergeForm(
        (first, second, third), method, parameters or "", blocks or "", _rows(rest), dtype, output or "",
        bool(overwrite),
    )  # fmt: skip


def _rows(values: list[Any]) -> tuple[Row, ...]:
    return tuple(
        Row(values[place], float(values[place + 1]), values[place + 2] or "")
        for place in range(0, ROWS * PER_ROW, PER_ROW)
    )
