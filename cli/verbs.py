"""A verb of the command line: its words, its help in groups, and the files that it names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from paramerge.cli.call import current, note_inputs
from paramerge.cli.paths import FileText, InputPath, OutputPath, file_of, spelled
from paramerge.cli.usage import extra_arguments

WORDS = "paramerge.words"
"""The place of a call's words among click's notes."""

FIRST = "Options"
_GROUPS = {
    "Parts and dtypes": (
        *(
            "only",
            "blocks",
            "variant",
            "dtype",
            "prune",
            "requantise",
            "quantise",
            "allow_unmatched",
            "partial",
            "config",
        ),
        *("rounding", "lift", "accept_loss", "allow_other_model"),
        *("from_unet", "from_text_encoder", "from_text_encoder_2", "from_vae"),
    ),
    "Output": (
        "content_hash",
        "card",
        "overwrite",
        "private",
        "dry_run",
        "all_layers",
        "all_metadata",
        "rehash",
        "as_json",
        "help",
    ),
    "Mathematics": (
        *("gamma", "boundary", "merge", "how", "keep", "energy", "kronecker", "krona", "lokr_factor"),
        *("density", "signs", "rescale", "epsilon", "outliers", "max_pairs"),
        *("lokr_scale", "released", "alpha", "rows", "orthonormalise", "init"),
    ),
}
"""The groups of the help behind the first one, in which all others are, and the options of each by name."""


class Verb(click.Command):
    """A command whose call can be told (:mod:`paramerge.cli.call`), and whose help is in groups."""

    def __init__(self, *arguments: Any, rest_of: str = "", **settings: Any) -> None:
        # arguments beyond those it has are refused below, with what to type
        settings["context_settings"] = {**(settings.get("context_settings") or {}), "allow_extra_args": True}
        super().__init__(*arguments, **settings)
        self.rest_of = rest_of
        """The option whose further values may follow without it, as a shell writes ``--each *``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, keep the words and note the files; raises UsageError where there are more than are taken."""
        ctx.meta[WORDS] = list(args)
        rest = super().parse_args(ctx, args)
        if ctx.args and ctx.params.get(self.rest_of):
            ctx.params[self.rest_of] += tuple(map(spelled, ctx.args))
        elif ctx.args and not ctx.resilient_parsing:
            raise extra_arguments(ctx, ctx.meta[WORDS])
        for parameter in self.get_params(ctx):
            self._note(parameter, ctx.params.get(parameter.name or ""))
        return rest

    def _note(self, parameter: click.Parameter, value: Any) -> None:
        for each in value if isinstance(value, (list, tuple)) else () if value is None else (value,):
            if isinstance(parameter.type, OutputPath):
                current().places.append(each)
            elif isinstance(parameter.type, (InputPath, FileText)):
                note_inputs([file_of(str(each))])

    def group_of(self, parameter: click.Parameter) -> str:
        """The title of the group that an option is in."""
        found = (title for title, names in _GROUPS.items() if parameter.name in names)
        return getattr(parameter, "group", None) or next(found, FIRST)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options, group by group."""
        groups: dict[str, list[tuple[str, str]]] = {title: [] for title in (FIRST, *_GROUPS)}
        for parameter, record in self.records(ctx):
            groups.setdefault(self.group_of(parameter), []).append(record)
        for title, records in groups.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def records(self, ctx: click.Context) -> Iterator[tuple[click.Parameter, tuple[str, str]]]:
        """Each option with its names and its help."""
        for parameter in self.get_params(ctx):
            if (record := parameter.get_help_record(ctx)) is not None:
                yield parameter, record
