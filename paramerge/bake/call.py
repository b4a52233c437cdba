"""``paramerge.bake``: adapters into a checkpoint, in one call."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from paramerge.apply.given import Adapter, PathLike, hashing, open_given, opened_base, patterns
from paramerge.apply.steps import BakeOptions, MergeChoice, Rounding, Step
from paramerge.bake.find_base import find_base, named_hashes
from paramerge.bake.plan import Plan, make_plan
from paramerge.deprecation import also_takes
from paramerge.errors import UsageError
from paramerge.wording import option

if TYPE_CHECKING:  # planning needs no torch
    from paramerge.adapters import Adapter as OpenedAdapter
    from paramerge.bake.bake import BakeReport
    from paramerge.bake.job import Progress
    from paramerge.checkpoints.layout import Base


def plan_bake(
    base: PathLike | Base | None,
    adapters: Iterable[Adapter | Step | PathLike | OpenedAdapter],
    *,
    merge: MergeChoice = "joint",
    gamma: float | None = None,
    only: Iterable[str] = (),
    dtype: str = "keep",
    allow_unmatched: bool = False,
    allow_other_model: bool = False,
    private: bool = False,
    content_hash: bool | None = None,
    card: bool = False,
    requantise: bool = False,
    quantise: str | None = None,
    rounding: Rounding = "nearest",
    lift: str | None = None,
    accept_loss: bool = False,
    variant: str | None = None,
) -> Plan:
    """Plan :func:`bake` for every tensor, from the headers; ``plan.write(output)`` carries it out.

    Parameters
    ----------
    base:
        A checkpoint (file or diffusers folder), or one that :func:`paramerge.open_base` opened; None to look
        for the one that the adapters name, by its hash.
    adapters:
        :class:`~paramerge.Para`, :class:`~paramerge.Lora`, :class:`~paramerge.Adapter`, or paths, in the
        order in which they are applied.
    merge:
        The way in which neighbouring PaRas are combined: ``joint`` (onto the sum of their spans) or
        ``sequential``.
    gamma:
        The rank boundary of the paper's equation 8, in (0, 1].
    only:
        Components (``unet``) or patterns of layer names; all without.
    dtype:
        The output's dtype (``fp16``, ``bf16``, ``fp32``, in any spelling), or ``keep``.
    allow_unmatched:
        Go on where keys of an adapter land nowhere.
    allow_other_model:
        Take adapters that were made for another architecture, as far as their layers fit.
    private:
        Leave the names of the inputs out of the recipe.
    content_hash:
        Hash all tensors of the output for the recipe, so that :func:`paramerge.verify` finds damage without
        the inputs; by default up to 64 MiB, where it takes no time to speak of.
    card:
        Write a model card: ``README.md`` in a folder; beside a file, one of its name that ends in ``.md``.
    requantise:
        Write quantised layers that change in their own scheme again, with new scales and stochastic rounding;
        else they become plain numbers.
    quantise:
        The scheme in which Linear layers are written: ``fp8``, ``fp8-row``, ``int8-row`` or ``mxfp8``.
    rounding:
        Of values that a step changes: ``nearest``, or ``stochastic``, which keeps the mean of a change and
        has a larger error (docs/survival.md).
    lift:
        The dtype (``bf16``, ``fp16``, ``fp32``) to which layers are raised that would keep less than 0.9 of a
        step. They are measured for the plan, which then reads the layers' weights.
    accept_loss:
        Write an output that keeps less than half of a step, too.
    variant:
        The variant of a diffusers folder's weights, such as ``fp16``.

    Raises
    ------
    UsageError
        Impossible options, or no adapter at all.
    ArchitectureError, UnmatchedError, ShapeError, FamilyError
        An adapter does not belong to this base, or not all of it does.
    CheckpointError, FileFormatError
        A file of another kind, or damaged.
    """
    options = BakeOptions(
        merge=merge,
        gamma=gamma,
        only=patterns(only),
        dtype=dtype,
        allow_unmatched=allow_unmatched,
        private=private,
        content_hash=content_hash,
        requantise=requantise,
        quantise=quantise,
        allow_other_model=allow_other_model,
        rounding=rounding,
        lift=lift,
        accept_loss=accept_loss,
        card=card,
    )
    return _planned(base, open_given(adapters), options, variant)


def _is_plan(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return "plan" in kwargs or (bool(args) and isinstance(args[0], Plan))


def _carry_out(plan: Plan, *args: Any, **kwargs: Any) -> BakeReport:
    return plan.write(*args, **kwargs)


@also_takes(_is_plan, _carry_out, "write plan.write(output), or give base and adapters")
def bake(
    base: PathLike | Base | None,
    adapters: Iterable[Adapter | Step | PathLike | OpenedAdapter],
    output: PathLike,
    *,
    merge: MergeChoice = "joint",
    gamma: float | None = None,
    only: Iterable[str] = (),
    dtype: str = "keep",
    allow_unmatched: bool = False,
    allow_other_model: bool = False,
    private: bool = False,
    content_hash: bool | None = None,
    card: bool = False,
    requantise: bool = False,
    quantise: str | None = None,
    rounding: Rounding = "nearest",
    lift: str | None = None,
    accept_loss: bool = False,
    overwrite: bool = False,
    variant: str | None = None,
    rehash: bool = False,
    progress: Progress | None = None,
) -> BakeReport:
    """Bake adapters into a checkpoint: ``bake("sdxl.safetensors", ["a.safetensors"], "out.safetensors")``.

    The output has the base's layout and keeps every byte that no adapter changes; it appears whole or not at
    all. The options are those of :func:`plan_bake`, and:

    Parameters
    ----------
    output:
        A file, or a folder where the base is one.
    overwrite:
        Whether a file at ``output``, or a folder that paramerge wrote, may be replaced.
    rehash:
        Hash large files anew instead of believing hashes of earlier runs.
    progress:
        Called with bytes done and bytes in all.

    Raises
    ------
    ParamergeError
        What :func:`plan_bake` raises, and :class:`~paramerge.errors.OutputError`,
        :class:`~paramerge.errors.NonFiniteError`, :class:`~paramerge.errors.InputChangedError` and
        :class:`~paramerge.errors.LossError`; the output is then as it was.
    """
    options = BakeOptions(
        merge=merge,
        gamma=gamma,
        only=patterns(only),
        dtype=dtype,
        allow_unmatched=allow_unmatched,
        private=private,
        content_hash=content_hash,
        requantise=requantise,
        quantise=quantise,
        allow_other_model=allow_other_model,
        rounding=rounding,
        lift=lift,
        accept_loss=accept_loss,
        card=card,
    )
    opened = open_given(adapters)
    looked_for = named_hashes(adapter for _, adapter in opened) if base is None else ()
    with hashing(rehash=rehash):
        plan = _planned(base, opened, options, variant)
        return plan.write(output, progress, overwrite=overwrite, base_sha256=looked_for)


def _planned(
    base: PathLike | Base | None,
    opened: list[tuple[Step, OpenedAdapter]],
    options: BakeOptions,
    variant: str | None,
) -> Plan:
    if not opened:
        raise UsageError(
            "there is nothing to bake", where=option("adapters"), expected="at least one adapter"
        )
    if base is None:
        base = find_base([adapter for _, adapter in opened])
    return make_plan(opened_base(base, variant), opened, options)
