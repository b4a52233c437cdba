"""``paramerge.convert``: an adapter in another format, in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from paramerge.apply.given import Adapter, PathLike, hashing, open_given, opened_base
from paramerge.apply.steps import Step
from paramerge.arguments import as_path
from paramerge.convert.convert import ConversionReport
from paramerge.convert.convert import convert as convert_opened
from paramerge.convert.deft import is_deft, open_deft
from paramerge.convert.request import ConvertOptions
from paramerge.deprecation import also_takes
from paramerge.interpretation import BY_TRAINER, Interpretation
from paramerge.merge.request import input_of

if TYPE_CHECKING:
    from paramerge.adapters import Adapter as OpenedAdapter
    from paramerge.checkpoints.layout import Base


def _has_options(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return len(args) > 2 or bool(kwargs.keys() & {"inputs", "options"})


@also_takes(_has_options, convert_opened, "give adapters, output and the options by name")
def convert(
    adapters: Iterable[Adapter | Step | PathLike | OpenedAdapter],
    output: PathLike,
    *,
    to: str,
    base: PathLike | Base | None = None,
    dtype: str | None = None,
    partial: bool = False,
    private: bool = False,
    rank: int | None = None,
    interpretation: Interpretation = BY_TRAINER,
    overwrite: bool = False,
    rehash: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ConversionReport:
    """Write an adapter in another format: ``convert(["style.safetensors"], "style", to="peft")``.

    A PaRa becomes a LoRA for one base; LoRAs beside it come after it, in the same file.

    Parameters
    ----------
    adapters:
        As for :func:`paramerge.bake`: one, or PaRas and LoRAs for a LoRA's format.
    output:
        A file; a folder for ``peft`` and ``deft``.
    to:
        ``kohya`` (or ``lycoris``), ``kohya-sgm``, ``comfyui``, ``onetrainer``, ``diffusers``, ``peft``,
        ``para``, ``deft``, or a dialect that a package adds.
    base:
        The checkpoint that a PaRa becomes a LoRA for; also the model whose keys settle names.
    dtype:
        In any spelling; None to keep each tensor's (of a PaRa that becomes a LoRA: ``fp16``).
    partial:
        Leave out layers that the format cannot hold, and keys that are no layer's, instead of refusing.
    private:
        Leave the inputs' names out of the output, and their metadata except those on the kind of model.
    rank:
        Write layers of other families as the nearest LoRA of at most this rank; the report has the error.
    interpretation:
        The user's decisions where trainers disagree, for adapters that are given as paths.
    overwrite, rehash, progress:
        As for :func:`paramerge.bake`; ``progress`` counts layers.

    Raises
    ------
    ParamergeError
        See :func:`paramerge.convert.convert.convert`.
    """
    options = ConvertOptions(to, dtype, partial, private, rank)
    opened = open_given(adapters, lambda path: open_deft(path) if is_deft(path) else None, interpretation)
    with hashing(rehash=rehash):
        return convert_opened(
            [input_of(step) for step, _ in opened],
            [adapter for _, adapter in opened],
            as_path(output, "output"),
            options,
            None if base is None else opened_base(base),
            progress or (lambda done, total: None),
            overwrite=overwrite,
        )
