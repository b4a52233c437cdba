"""Pictures of a base with adapters: before and after, and grids of strengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from paramerge.errors import UsageError
from paramerge.ui.forms import BakeForm, Row
from paramerge.ui.library import Library

if TYPE_CHECKING:  # PIL and what draws are imported when something is drawn
    from PIL import Image

MOST_PICTURES = 64


@dataclass(frozen=True, slots=True)
class DrawForm:
    """A prompt, and the strengths of the first (and second) adapter that are tried."""

    prompt: str
    negative: str = ""
    seed: int = 0
    steps: int = 25
    guidance: float = 7.5
    across: tuple[float, ...] = ()
    down: tuple[float, ...] = ()


def numbers(text: str) -> tuple[float, ...]:
    """Numbers between commas.

    Raises
    ------
    UsageError
        Something else is there.
    """
    try:
        return tuple(float(word) for word in text.replace(";", ",").split(",") if word.strip())
    except ValueError:
        raise UsageError("these are no numbers", expected="such as 0, 0.5, 1", found=repr(text)) from None


def drawn(
    form: BakeForm, request: DrawForm, library: Library, progress: Callable[[int, int], None]
) -> Image.Image:
    """The base and what the adapters make of it, of one seed; or a grid of strengths where some are given.

    Raises
    ------
    UsageError
        Nothing to draw, or too much.
    ParamergeError
        What planning and loading raise.
    """
    from paramerge.generation.grid import Row as Line
    from paramerge.generation.grid import labelled_grid

    across = request.across or (None,)
    down = request.down or (None,)
    if len(across) * len(down) > MOST_PICTURES:
        raise UsageError("the grid is too large", expected=f"at most {MOST_PICTURES} pictures")
    if (request.across and not form.chosen) or (request.down and len(form.chosen) < 2):
        raise UsageError("there is no adapter for these strengths", hint="add one, or leave them empty")
    painter = _Painter(form, request, library, progress, total=len(across) * len(down) + (across == (None,)))
    if not request.across and not request.down:
        rows = [Line("the base", [painter.picture(())])]
        if form.chosen:
            rows.append(Line(_label(form.chosen), [painter.picture(form.chosen)]))
        return labelled_grid(rows, [f"seed {request.seed}"])
    lines = []
    for y in down:
        pictures = [painter.picture(_with(form.chosen, x, y)) for x in across]
        lines.append(Line("" if y is None else f"{form.chosen[1].name} @ {y:g}", pictures))
    return labelled_grid(lines, ["" if x is None else f"{form.chosen[0].name} @ {x:g}" for x in across])


def _with(rows: Sequence[Row], first: float | None, second: float | None) -> tuple[Row, ...]:
    changed = list(rows)
    for place, strength in enumerate((first, second)):
        if strength is not None:
            changed[place] = replace(rows[place], strength=strength)
    return tuple(changed)


def _label(rows: Sequence[Row]) -> str:
    return " + ".join(f"{row.name} @ {row.strength:g}" for row in rows)


class _Painter:
    """Draws the same prompt with the same seed; the pipeline is loaded anew for each choice of adapters."""

    def __init__(
        self,
        form: BakeForm,
        request: DrawForm,
        library: Library,
        progress: Callable[[int, int], None],
        total: int,
    ) -> None:
        from paramerge.generation.loading import pick_device, require_libraries

        if not request.prompt.strip():
            raise UsageError("there is nothing to draw", expected="a prompt")
        require_libraries()
        self._form, self._request, self._library = form, request, library
        self._device = pick_device(None)
        self._progress, self._total, self._done = progress, total * request.steps, 0

    def picture(self, rows: tuple[Row, ...]) -> Any:
        """The picture (height, width, 3) uint8 with these adapters."""
        from paramerge.checkpoints.layout import open_base
        from paramerge.generation.adapting import apply_plan
        from paramerge.generation.loading import load_pipeline, pick_dtype
        from paramerge.generation.sampling import Request, draw, set_scheduler

        base = open_base(self._library.base(self._form.base))
        pipeline = load_pipeline(base, pick_dtype(None, self._device), None)
        set_scheduler(pipeline, "ddim")
        if rows:
            apply_plan(replace(self._form, rows=rows).plan(self._library), pipeline)
        request = Request(
            (self._request.prompt,),
            self._request.negative,
            (self._request.seed,),
            self._request.steps,
            self._request.guidance,
        )
        ((picture,),) = draw(pipeline.to(self._device), request, self._step)
        return picture

    def _step(self) -> None:
        self._done += 1
        self._progress(min(self._done, self._total), self._total)
