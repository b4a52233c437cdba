"""``paramerge bake --each``: one adapter after the other onto the same base, into a folder of outputs."""

from __future__ import annotations

import contextlib
import glob
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from paramerge.apply.steps import Step, parse_step
from paramerge.cli.call import collected, note_inputs, print_json
from paramerge.cli.render import note, out, shown
from paramerge.cli.shown_error import show_error
from paramerge.errors import ParamergeError, UsageError

_ENDING = ".safetensors"


def bake_each(
    texts: Sequence[str],
    before: Sequence[Step],
    output: Path | None,
    bake: Callable[[Sequence[Step], Path], None],
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Bake each adapter of ``texts``, after the steps ``before``, to an output of its name in ``output``.

    A bake that is refused is shown and counted, and the others go on; the exit code is that of the first one.

    Raises
    ------
    UsageError
        There is no such adapter, two have one name, or no folder is given.
    OutputError
        The folder cannot be made.
    SystemExit
        At least one bake was refused.
    """
    from paramerge.files.writer import make_folder

    steps = _named(texts)
    note_inputs(str(step.path) for step in steps.values())
    if output is None:
        raise UsageError(
            "the outputs have no folder",
            where="--each",
            expected="-o FOLDER",
            hint="see paramerge bake --help",
        )
    is_new = not output.exists()
    make_folder(output)
    faults: list[ParamergeError] = []
    with collected() as parts:
        for number, (name, step) in enumerate(steps.items(), 1):
            note(f"{number} of {len(steps)}: {step.path}", quiet=as_json)
            try:
                bake([*before, step], output / name)
            except ParamergeError as error:
                faults.append(error)
                show_error(error, as_json=as_json)
            for part in parts[number - 1 :]:
                part["adapter"] = str(step.path)
    if is_new and (dry_run or len(faults) == len(steps)):
        with contextlib.suppress(OSError):
            output.rmdir()
    done = f"{len(steps) - len(faults)} of {len(steps)} {'planned' if dry_run else 'baked'}"
    if as_json:
        print_json({"bakes": parts, "failed": len(faults), "output": str(output)})
    else:
        out.print(f"[bold]{shown(output)}[/bold]  {done}")
    if faults:
        sys.exit(faults[0].exit_code)


def _named(texts: Sequence[str]) -> dict[str, Step]:
    """The step for each adapter that ``texts`` name, by the name of its output."""
    steps: dict[str, Step] = {}
    for step in (found for text in texts for found in _steps(text)):
        name = step.path.name.removesuffix(_ENDING)
        if name in steps:
            raise UsageError(
                "two adapters would have one output",
                where="--each",
                found=f"{steps[name].path} and {step.path}",
                hint="bake them into two folders",
            )
        steps[name] = step
    return steps


def _steps(text: str) -> list[Step]:
    """The steps for a file, for each adapter in a folder, or for each that a pattern fits; sorted by name."""
    step = parse_step("adapter", text)
    if step.path.is_dir() and not (step.path / "adapter_config.json").is_file():
        pattern = str(Path(glob.escape(str(step.path))) / f"*{_ENDING}")
    elif glob.has_magic(str(step.path)) and not step.path.exists():
        pattern = str(step.path)
    else:
        return [step]
    if not (found := sorted(glob.glob(pattern))):  # noqa: PTH207 (patterns may be absolute)
        raise UsageError(
            "there is no adapter to bake",
            where="--each",
            expected=f"a file, a folder with *{_ENDING} files, or a pattern that fits some",
            found=text,
        )
    return [Step("adapter", Path(name), step.strength, step.blocks) for name in found]
