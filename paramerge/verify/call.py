"""``paramerge.verify``: an output held against its recipe and its hashes, without writing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from paramerge.apply.given import PathLike, hashing
from paramerge.convert.writing import CONVERSION_KEY
from paramerge.errors import MissingInputError, ParamergeError, PluginError
from paramerge.extract.extract import EXTRACTION_KEY
from paramerge.files.content_hash import HEADER_KEY
from paramerge.listing import listed
from paramerge.merge.combine import MERGE_KEY
from paramerge.replay.call import Replay, plan_replay
from paramerge.verify.making import Made, make_again
from paramerge.verify.output import Output, content_hash, read_output, whole_sha256
from paramerge.verify.verdict import Verdict, Verification

if TYPE_CHECKING:
    from paramerge.bake.job import Progress

_OTHER_RECIPES = {CONVERSION_KEY: "convert", EXTRACTION_KEY: "extract", MERGE_KEY: "merge of adapters"}
_SHOWN = 8
"""Tensors and the like that a line names, at most."""


def verify(
    path: PathLike,
    *,
    models: Iterable[PathLike] = (),
    rehash: bool = False,
    progress: Progress | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> Verification:
    """Hold an output against its recipe and its own hashes: ``verify("merged.safetensors").verdict``.

    Where the inputs are found everything is computed again and compared, and nothing is written. Without them
    the hashes that the output has of itself say whether it is as it was written.

    Parameters
    ----------
    path:
        A file or folder that bake, or merge of checkpoints, wrote.
    models:
        Folders in which inputs are looked for, as for :func:`paramerge.replay`.
    rehash:
        Hash large files anew instead of believing hashes of earlier runs.
    progress:
        Called with bytes done and bytes in all.
    note:
        Called with a line before anything that takes long.

    Raises
    ------
    CheckpointError, FileFormatError, UsageError
        There is nothing at ``path``, it cannot be read, or it is no output.
    ParamergeError
        What :func:`paramerge.replay` raises, but for inputs that are missing.
    """
    began = time.perf_counter()
    with hashing(rehash=rehash):
        found = _Verifying(read_output(Path(path)), tuple(models), progress, note)
        return found.verification(began)


@dataclass
class _Verifying:
    """One verification under way: what was found so far."""

    output: Output
    models: tuple[PathLike, ...]
    progress: Progress | None
    note: Callable[[str], None]
    damage: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    missing: tuple[str, ...] = ()
    content: bool | None = None

    def verification(self, began: float) -> Verification:
        output = self.output
        self.damage += output.faults
        replay = self._planned() if output.recipe is not None else None
        made = None if replay is None else make_again(replay.plan, output, self.progress)
        versions: Mapping[str, tuple[str, str]] = {} if replay is None else replay.versions
        if made is not None:
            self._judge_content(made.content)
        elif output.recipe is not None:
            self._judge_content(self._hashed())
        else:
            self._say_that_there_is_no_recipe()
        verdict = self._verdict(made, versions)
        return Verification(
            output.path,
            verdict,
            tuple(dict.fromkeys([*self.damage, *self.findings])),
            output.header_is_intact,
            self.content,
            made is not None,
            made.tensors if made else 0,
            made.bytes if made else 0,
            made.differences if made else (),
            versions,
            self.missing,
            time.perf_counter() - began,
        )

    def _planned(self) -> Replay | None:
        """The plan of the recipe; None where inputs are missing, or a damaged recipe says nothing."""
        try:
            return plan_replay(self.output.path, models=self.models, note=self.note)
        except MissingInputError as error:
            self.missing = tuple(str(error.expected).split("; "))
            self.findings += [f"not made again: {error.what}", *error.unread]
        except PluginError as error:
            self.findings.append(f"not made again: {error.what}: {error.expected}; {error.hint}")
        except ParamergeError as error:
            if not self.damage:
                raise
            self.findings.append(f"not made again: {error.what}")
        return None

    def _hashed(self) -> dict[PurePosixPath, str]:
        """The content hash of every file of weights that has one in the recipe; without inputs."""
        stated = {p: h for p, h in self.output.headers.items() if self.output.stated_content(p) is not None}
        bases = self._base_files()
        copies = {
            p: h
            for p, h in self.output.headers.items()
            if p not in stated and HEADER_KEY not in h.metadata and str(p) in bases
        }
        total = sum(header.file_size for header in (*stated.values(), *copies.values()))
        done = 0

        def report(count: int) -> None:
            nonlocal done
            done += count
            if self.progress is not None:
                self.progress(done, total)

        for place, header in copies.items():
            if whole_sha256(header.source, report) != bases[str(place)]:
                self.damage.append(f"{place} is not the base's, whose copy it was")
        return {place: content_hash(header, report) for place, header in stated.items()}

    def _base_files(self) -> dict[str, str]:
        """The SHA-256 of the base's files by their names: files in which nothing changes are copies."""
        base: Any = (self.output.recipe or {}).get("base")
        files = base.get("files") if isinstance(base, dict) and self.output.is_folder else None
        return {
            str(entry.get("name")): str(entry.get("sha256"))
            for entry in (files if isinstance(files, list) else [])
            if isinstance(entry, dict)
        }

    def _judge_content(self, hashes: Mapping[PurePosixPath, str]) -> None:
        places = {path if self.output.is_folder else PurePosixPath(): found for path, found in hashes.items()}
        for place, found in places.items():
            stated = self.output.stated_content(place)
            if stated is None:
                continue
            self.content = (self.content is not False) and stated == found
            if stated != found:
                name = str(place) if self.output.is_folder else self.output.path.name
                self.damage.append(f"the tensors of {name} do not have the hash in the recipe")

    def _say_that_there_is_no_recipe(self) -> None:
        if self.damage:
            return
        metadata = {key for header in self.output.headers.values() for key in header.metadata}
        verbs = [verb for key, verb in _OTHER_RECIPES.items() if key in metadata]
        made = (
            f": {verbs[0]} wrote it, whose outputs cannot be made again from their metadata" if verbs else ""
        )
        self.findings.append(f"there is no recipe here{made}")

    def _verdict(self, made: Made | None, versions: Mapping[str, tuple[str, str]]) -> Verdict:
        if made is not None:
            self.findings += self._said_of(made, versions)
        if self.damage:
            return "damaged"
        if made is None:
            self.findings += self._said_without_inputs()
            return "cannot tell"
        if not made.differences and not made.others:
            return "identical"
        is_rounding = versions and not made.others and all(found.is_rounding for found in made.differences)
        return "cannot tell" if is_rounding else "differs"

    def _said_of(self, made: Made, versions: Mapping[str, tuple[str, str]]) -> Iterator[str]:
        yield from made.others[:_SHOWN]
        if len(made.others) > _SHOWN:
            yield f"and {len(made.others) - _SHOWN} more of these"
        if made.differences:
            yield f"{len(made.differences)} of {made.tensors} tensors differ from what the recipe makes"
        for name, (then, now) in versions.items():
            yield f"{name} was {then} and is {now}"
        beyond = [found.key for found in made.differences if not found.is_rounding]
        if made.differences and versions and not beyond:
            yield "all differences are within the rounding of other versions or instructions"
        elif beyond and versions:
            yield f"more than rounding: {listed(beyond, 3)}"

    def _said_without_inputs(self) -> Iterator[str]:
        if self.output.recipe is None:
            return
        if self.content:
            yield "the tensors are as they were written, by their hash in the recipe"
        elif self.content is None:
            yield "the recipe has no hash of the tensors: whether they are damaged cannot be told"
        if self.output.header_is_intact:
            yield "the header is as it was written"
