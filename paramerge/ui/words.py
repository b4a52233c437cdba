"""Texts of the page: those of the command line, as plain text."""

from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path

from paramerge.bake.bake import BakeReport
from paramerge.bake.plan import Plan
from paramerge.bake.summary import summarise
from paramerge.cli.bake_view import show_plan, show_report
from paramerge.cli.flags import with_flags
from paramerge.cli.inspect_text import show
from paramerge.cli.render import out
from paramerge.errors import ParamergeError, printable, shortened
from paramerge.inspect.call import inspect
from paramerge.ui.jobs import State

_LONGEST = 20_000


def printed(show: Callable[[], None]) -> str:
    """All that ``show`` prints to the command line's console."""
    with out.captured() as text:
        show()
    return shortened(printable(text.getvalue().rstrip()), _LONGEST)


def plan_text(plan: Plan, output: Path) -> str:
    """The plan as ``--dry-run`` shows it."""
    return printed(lambda: show_plan(summarise(plan), output))


def report_text(plan: Plan, report: BakeReport) -> str:
    """The report of a bake, and its warnings."""
    text = printed(lambda: show_report(plan, summarise(plan), report))
    warnings = [f"warning: {with_flags(warning)}" for warning in (*plan.order_warnings, *plan.warnings)]
    return "\n".join([text, *warnings])


def file_text(path: Path) -> str:
    """A file or folder as ``inspect`` shows it."""
    facts = inspect(path)
    return printed(lambda: show(facts))


def fault(error: BaseException) -> str:
    """An error in its own words; of one that is none of ours, its kind too."""
    text = str(error) if isinstance(error, ParamergeError) else f"{type(error).__name__}: {error}"
    return shortened(printable(with_flags(text)), _LONGEST)


def boxed(text: str, kind: str = "plain") -> str:
    """Text as HTML of its own width, in a box that says whether it is an error; nothing in it is markup."""
    return f'<pre class="pm-text pm-{kind}" data-kind="{kind}">{html.escape(text)}</pre>'


def bar(state: State) -> str:
    """A progress bar with its percentage and seconds."""
    percent = f"{100 * state.share:.0f}"
    label = f"{percent} % after {state.seconds:.0f} s"
    return f'<div class="pm-bar"><div style="width:{percent}%"></div><span>{label}</span></div>'
