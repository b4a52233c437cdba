"""Campaigns for an hour or a night: every system call failing in turn, kills, mutated files.

    python tools/campaign.py faults               each call of each verb, with each error it can have
    python tools/campaign.py faults --verb merge --count 500 --seed 3
    python tools/campaign.py kills                SIGKILL, SIGTERM, SIGHUP and SIGINT at each call
    python tools/campaign.py headers              mutated headers, judged by the safetensors library, too
    python tools/campaign.py adapters             mutated adapters through every verb
    python tools/campaign.py configurations       mutated configurations, PEFT's and models'

The exit code is 0 if nothing was found. The tests run a small, seeded part of each.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
os.environ.setdefault("OMP_NUM_THREADS", "1")  # what is computed is tiny

from fault_trials import Bench, Server, Tally, build_shim, sample
from fault_verbs import VERBS

if TYPE_CHECKING:
    from adapter_mutants import Mutant

_SHOWN_EVERY = 5000
"""Mutants; a campaign that was stopped goes on at the last seed shown (--seed)."""

_verbs = click.option("--verb", "verbs", multiple=True, type=click.Choice(list(VERBS)), help="Default: all.")
_count = click.option("--count", default=0, help="So many trials of each verb by chance; default: all.")
_each = click.option("--each", is_flag=True, help="Each call once, with one of its faults by chance.")
_seed = click.option("--seed", default=0, show_default=True)


@click.group()
def campaign() -> None:
    """Look for what breaks: nothing lost, nothing torn, no traceback, no litter."""


@campaign.command()
@_verbs
@_count
@_each
@_seed
def faults(verbs: Sequence[str], count: int, each: bool, seed: int) -> None:
    """Let each system call of each verb fail with each error it can have, once and from then on."""
    _run(verbs, count, each, seed, ())


@campaign.command()
@_verbs
@_count
@_each
@_seed
def kills(verbs: Sequence[str], count: int, each: bool, seed: int) -> None:
    """Kill each verb, and stop it by SIGTERM, SIGHUP and Ctrl-C, at each system call."""
    _run(verbs, count, each, seed, (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT))


@campaign.command()
@click.option("--count", default=1_000_000, show_default=True)
@_seed
def headers(count: int, seed: int) -> None:
    """Read mutated headers with paramerge and with the safetensors library."""
    from header_fuzz import campaign as judged

    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        verdicts = judged(count, seed, Path(folder))
    click.echo("\n".join(verdicts.lines()))
    sys.exit(1 if verdicts.only_ours or verdicts.tracebacks or verdicts.differ else 0)


@campaign.command()
@click.option("--count", default=100_000, show_default=True)
@_seed
def adapters(count: int, seed: int) -> None:
    """Run the verbs on mutated adapters, each for at most ten seconds."""
    from adapter_mutants import mutant

    _check_mutants(mutant, count, seed)


@campaign.command()
@click.option("--count", default=20_000, show_default=True)
@_seed
def configurations(count: int, seed: int) -> None:
    """Run the verbs on adapters and models with mutated configurations, each for at most ten seconds."""
    from config_mutants import config_mutant, model_mutant

    _check_mutants(lambda number: (config_mutant, model_mutant)[number % 2](number), count, seed)


def _check_mutants(make: Callable[[int], Mutant], count: int, seed: int) -> None:
    from adapter_mutants import Bench as MutantBench
    from adapter_mutants import check

    found = 0
    in_memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="campaign-", dir=in_memory) as folder:
        bench = MutantBench(Path(folder), limit=10.0)
        for number in range(seed, seed + count):
            for finding in check(make(number), bench):
                found += 1
                click.echo(str(finding))
            if number % _SHOWN_EVERY == 0:
                click.echo(f"at seed {number} after {time.process_time():.0f} s: {found} findings")
    click.echo(f"{count} mutants: {found} findings")
    sys.exit(1 if found else 0)


def _run(verbs: Sequence[str], count: int, each: bool, seed: int, signals: Sequence[int]) -> None:
    total = 0
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        shim = build_shim(Path(folder))
        if shim is None:
            raise click.ClickException("there is no C compiler, or this is not Linux")
        (Path(folder) / "trials").mkdir()
        wanted = verbs or VERBS
        server = Server(shim, Path(folder) / "trials", models=any(VERBS[verb].models for verb in wanted))
        bench = Bench(server)
        for verb in wanted:
            tally, began = Tally(), time.monotonic()
            for existing in bench.states(verb):
                trials = list(bench.trials(verb, existing, signals, seed if each else None))
                for trial in sample(trials, count, seed):
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
