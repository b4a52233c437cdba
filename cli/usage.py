"""A call that is not understood: click's errors in this project's shape, with what to type instead."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable, Sequence

import click

from paramerge.cli.call import current
from paramerge.errors import UsageError

_MEANT = {
    "--model": ("--base",),
    "--checkpoint": ("--base", "--model"),
    "--ckpt": ("--base", "--model"),
    "--base": ("--model",),
    "--out": ("--output",),
    "--force": ("--overwrite",),
    "--precision": ("--dtype",),
    "--half": ("--dtype fp16",),
    "--fp16": ("--dtype fp16",),
    "--bf16": ("--dtype bf16",),
    "--batch": ("--batch-size",),
    "--lr": ("--learning-rate",),
    "--quiet": ("--json",),
}
"""Options of other programs, and of other verbs, with the ones that are meant."""
_STRENGTHS = ("--scale", "--strength", "--weight", "--multiplier", "--alpha", "--ratio")
_BASES = ("--base", "--model")
_STEPS = ("--adapter", "--lora", "--para")
_QUOTED = re.compile(r"'([^']*)'")


def usage_error(error: click.ClickException) -> UsageError:
    """An error of click's as one of this project's."""
    ctx = getattr(error, "ctx", None)
    if isinstance(error, click.NoSuchOption):
        return _no_such_option(error.option_name, ctx)
    if isinstance(error, click.MissingParameter):
        return _missing(error.param, ctx)
    if isinstance(error, click.BadParameter) and error.param is not None:
        return _bad_value(error, error.param, ctx)
    if isinstance(error, click.BadOptionUsage):
        return UsageError(_as_fault(error.message), where=error.option_name, hint=_see(ctx))
    return UsageError(_as_fault(error.format_message()), where=_place(ctx), hint=_see(ctx))


def no_such_verb(name: str, verbs: Iterable[str]) -> UsageError:
    """The error for a verb that does not exist."""
    verbs = list(verbs)
    near = difflib.get_close_matches(name, verbs, 2)
    return UsageError(
        "there is no such verb",
        expected=", ".join(verbs),
        found=name,
        hint=f"did you mean {' or '.join(near)}?" if near else "see paramerge --help",
    )


def extra_arguments(ctx: click.Context, words: Sequence[str]) -> UsageError:
    """The error for arguments beyond those that a verb takes."""
    rest = list(ctx.args)
    known = _options(ctx)
    hint = _repeated(ctx, words, rest[0]) or _named(rest, known, words) or _see(ctx)
    return UsageError(
        "an argument has no option before it" if len(rest) == 1 else "arguments have no options before them",
        where=_place(ctx),
        found=" ".join(map(shlex.quote, rest)),
        hint=hint,
    )


def _repeated(ctx: click.Context, words: Sequence[str], first: str) -> str | None:
    """The hint at an option that was given two values: it is to be repeated."""
    place = words.index(first) if first in words else 0
    if place < 2 or not words[place - 2].startswith("-"):
        return None
    option = words[place - 2]
    takes_many = any(
        isinstance(p, click.Option) and option in p.opts and p.multiple for p in ctx.command.get_params(ctx)
    )
    return f"each has its own: {option} {words[place - 1]} {option} {first}" if takes_many else None


def _named(rest: Sequence[str], known: Sequence[str], words: Sequence[str]) -> str | None:
    """The hint at the options that arguments without any are meant for: a base, adapters, and the output."""
    left, shown = list(rest), []
    base = next((option for option in _BASES if option in known), None)
    step = next((option for option in _STEPS if option in known), None)
    if base and not {*_BASES} & {*words}:
        shown += [base, left.pop(0)]
    output = left.pop() if len(rest) > 2 and left and not {"-o", "--output"} & {*words} else None
    if left and not step:
        return None
    shown += [word for each in left for word in (str(step), each)]
    shown += [] if output is None else ["-o", output]
    return f"give {' '.join(map(shlex.quote, shown))}" if shown else None


def _no_such_option(name: str, ctx: click.Context | None) -> UsageError:
    known = _options(ctx)
    meant = [option for option in _MEANT.get(name, ()) if option.split()[0] in known]
    if meant:
        hint = f"it is {meant[0]} here"
    elif name in _STRENGTHS and {*_STEPS} & {*known}:
        hint = f"a strength is behind its file: {next(s for s in ('--lora', *_STEPS) if s in known)} FILE@0.8"
    elif near := difflib.get_close_matches(name, known, 3):
        hint = f"did you mean {' or '.join(near)}?"
    else:
        hint = _see(ctx)
    return UsageError("there is no such option", where=_place(ctx), found=name, hint=hint)


def _missing(parameter: click.Parameter | None, ctx: click.Context | None) -> UsageError:
    if parameter is None or ctx is None:
        return UsageError("something is missing", where=_place(ctx), hint=_see(ctx))
    is_option = isinstance(parameter, click.Option)
    choices = "|".join(map(str, getattr(parameter.type, "choices", ())))
    value = parameter.metavar or choices or (parameter.name if not is_option else parameter.type.name) or ""
    return UsageError(
        f"an {'option' if is_option else 'argument'} is missing",
        where=_place(ctx),
        expected=" ".join([*parameter.opts[:is_option], value if choices else value.upper()]),
        hint=_see(ctx),
    )


def _bad_value(
    error: click.BadParameter, parameter: click.Parameter, ctx: click.Context | None
) -> UsageError:
    where = parameter.opts[-1] if isinstance(parameter, click.Option) else parameter.human_readable_name
    if not isinstance(parameter.type, click.Choice):
        return UsageError(_as_fault(error.message), where=where, hint=_see(ctx))
    quoted = _QUOTED.search(error.message)
    found, choices = quoted[1] if quoted else "", list(map(str, parameter.type.choices))
    near = difflib.get_close_matches(found, choices, 2)
    return UsageError(
        "there is no such choice",
        where=where,
        expected=", ".join(choices),
        found=found,
        hint=f"did you mean {' or '.join(near)}?" if near else _see(ctx),
    )


def _options(ctx: click.Context | None) -> list[str]:
    """The names of all options of a verb."""
    if ctx is None:
        return []
    return [name for p in ctx.command.get_params(ctx) if isinstance(p, click.Option) for name in p.opts]


def _place(ctx: click.Context | None) -> str:
    return f"paramerge {current().verb}".strip() if ctx is None else ctx.command_path


def _see(ctx: click.Context | None) -> str:
    return f"see {_place(ctx)} --help"


def _as_fault(message: str) -> str:
    """A sentence as the first line of an error has it."""
    text = message.strip().rstrip(".")
    return text[:1].lower() + text[1:]
