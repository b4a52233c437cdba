"""Campaigns for an hour or a night: every system call failing in turn, kills, mutated files.

    python tools/campaign.py faults               each call of each verb, with each error it can have
    python tools/campaign.py faults --verb merge --count 500 --seed 3
    python tools/campaign.py kills                SIGKILL, SIGTERM, SIGHUP and SIGINT at each call

The exit code is 0 if nothing was found. The tests run a small, seeded part of each.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from fault_trials import VERBS, Bench, Server, Tally, build_shim, sample

_verbs = click.option("--verb", "verbs", multiple=True, type=click.Choice(list(VERBS)), help="Default: all.")
_count = click.option("--count", default=0, help="So many trials of each verb by chance; default: all.")
_seed = click.option("--seed", default=0, show_default=True)


@click.group()
def campaign() -> None:
    """Look for what breaks: nothing lost, nothing torn, no traceback, no litter."""


@campaign.command()
@_verbs
@_count
@_seed
def faults(verbs: Sequence[str], count: int, seed: int) -> None:
    """Let each system call of each verb fail with each error it can have, once and from then on."""
    _run(verbs, count, seed, ())


@campaign.command()
@_verbs
@_count
@_seed
def kills(verbs: Sequence[str], count: int, seed: int) -> None:
    """Kill each verb, and stop it by SIGTERM, SIGHUP and Ctrl-C, at each system call."""
    _run(verbs, count, seed, (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT))


def _run(verbs: Sequence[str], count: int, seed: int, signals: Sequence[int]) -> None:
    total = 0
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        shim = build_shim(Path(folder))
        if shim is None:
            raise click.ClickException("there is no C compiler, or this is not Linux")
        (Path(folder) / "trials").mkdir()
        server = Server(shim, Path(folder) / "trials")
        bench = Bench(server)
        for verb in verbs or VERBS:
            tally, began = Tally(), time.monotonic()
            for existing in (False, True) if verb != "inspect" else (False,):
                for trial in sample(list(bench.trials(verb, existing, signals)), count, seed):
                    bench.carry_out(trial, tally)
            _show(verb, tally, time.monotonic() - began)
            total += len(tally.found)
        server.close()
    sys.exit(1 if total else 0)


def _show(verb: str, tally: Tally, seconds: float) -> None:
    ends = ", ".join(f"{code}: {number}" for code, number in sorted(tally.ends.items()))
    found = (
        ", ".join(f"{number} {kind}" for kind, number in sorted(tally.faults().items())) or "nothing found"
    )
    click.echo(f"{verb:14} {tally.runs:6} runs in {seconds:4.0f} s (exit codes {ends}): {found}")
    for kind, trial, text in tally.found[:20]:
        click.echo(f"  {kind}: {trial}\n    " + text.strip().replace("\n", "\n    ")[:1500])


if __name__ == "__main__":
    campaign()
