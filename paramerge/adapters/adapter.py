"""An opened adapter as data, independent of its file's dialect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from paramerge.adapters.contract import LayerModule
from paramerge.adapters.registry import label
from paramerge.files.source import Source
from paramerge.interpretation import BY_TRAINER, Interpretation
from paramerge.models.names import ModuleName
from paramerge.summarised import Summarised


@dataclass(frozen=True)
class Leftover:
    """Keys of the file that change no layer that paramerge can reach, and why."""

    keys: tuple[str, ...]
    reason: str


@dataclass(frozen=True, repr=False)
class Adapter(Summarised):
    """An adapter that was opened: its layers by canonical name. No tensor but the alphas has been read.

    Attributes
    ----------
    path:
        The safetensors file (inside the folder, for a PEFT folder).
    opened:
        The open files that decide its meaning: the weights, and ``adapter_config.json`` if there is one.
    family:
        The family of all its layers, a key of :mod:`~paramerge.adapters.registry`; ``mixed`` where
        they are of several.
    dialect:
        ``paramerge``, ``kohya`` (LyCORIS too), ``kohya-sgm``, ``diffusers``, ``diffusers-old``, ``peft``,
        ``cloneofsimo`` or ``svdiff``.
    architecture:
        ``sd15``, ``sd2``, ``sdxl`` or ``sdxl-refiner``, known from shapes, names or metadata; None if they
        leave it open.
    base_hashes:
        Hashes of the checkpoint it says it was made for: SHA-256 in hex, first, then the short hashes of
        older tools.
    interpretation:
        The user's decisions where trainers disagree, when it was opened.
    """

    path: Path
    opened: tuple[Source, ...]
    family: str
    dialect: str
    modules: Mapping[ModuleName, LayerModule]
    leftovers: tuple[Leftover, ...]
    metadata: Mapping[str, str]
    architecture: str | None
    base_hashes: tuple[str, ...]
    interpretation: Interpretation = BY_TRAINER

    def summary(self) -> Mapping[str, object]:
        """The facts that it is shown by."""
        return {
            "path": self.path,
            "family": ", ".join(self.families),
            "dialect": self.dialect,
            "architecture": self.architecture,
            "layers": len(self.modules),
            "leftovers": sum(len(leftover.keys) for leftover in self.leftovers) or None,
        }

    @property
    def sources(self) -> tuple[Path, ...]:
        """The paths of :attr:`opened`."""
        return tuple(file.path for file in self.opened)

    @property
    def families(self) -> Mapping[str, int]:
        """Layers (and norms and biases) of each family, by its name for people; the commonest first."""
        counts = Counter(label(module.family) for module in self.modules.values())
        return dict(counts.most_common())
