"""``paramerge.merge``: adapters into one adapter, or checkpoints into one checkpoint, in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from paramerge.apply.given import Adapter, PathLike, hashing, open_given, opened_base, patterns
from paramerge.apply.steps import BakeOptions, Rounding, Step
from paramerge.arguments import as_path
from paramerge.errors import UsageError
from paramerge.files.dtype_names import KEEP
from paramerge.interpretation import BY_TRAINER, Interpretation
from paramerge.merge.checkpoints.request import MergeRequest, request_of
from paramerge.merge.checkpoints.toml_recipe import TomlRecipe, read_toml_recipe
from paramerge.merge.combine import combine
from paramerge.merge.given import Given, gives_checkpoint
from paramerge.merge.report import MergeReport
from paramerge.merge.request import CombineOptions, KeepChoice, input_of
from paramerge.resolve.blocks import BlockWeights
from paramerge.wording import option

if TYPE_CHECKING:
    from paramerge.adapters import Adapter as OpenedAdapter
    from paramerge.bake.bake import BakeReport
    from paramerge.bake.plan import Plan
    from paramerge.checkpoints.layout import Base


def merge(
    inputs: Iterable[Adapter | Step | PathLike | OpenedAdapter | Base],
    output: PathLike,
    *,
    method: str | None = None,
    blocks: BlockWeights | Mapping[str, float] | str | None = None,
    adapters: Iterable[Adapter | Step | PathLike | OpenedAdapter] = (),
    components: Mapping[str, PathLike] | None = None,
    only: Iterable[str] = (),
    prune: bool = False,
    variant: str | None = None,
    base: PathLike | Base | None = None,
    merge: Literal["joint", "sequential"] = "joint",
    gamma: float | None = None,
    keep: KeepChoice | None = None,
    rank: int | None = None,
    energy: float | None = None,
    dtype: str | None = None,
    allow_unmatched: bool = False,
    private: bool = False,
    interpretation: Interpretation = BY_TRAINER,
    content_hash: bool | None = None,
    rounding: Rounding = "nearest",
    lift: str | None = None,
    accept_loss: bool = False,
    card: bool = False,
    overwrite: bool = False,
    rehash: bool = False,
    progress: Callable[[int, int], None] | None = None,
    **parameters: object,
) -> MergeReport | BakeReport:
    """Merge adapters into an adapter, or checkpoints into a checkpoint: ``merge([a, b], "m.safetensors")``.

    PaRas are merged jointly, LoRAs are added, each times its scale; both together become a LoRA for ``base``.
    Checkpoints are merged tensor by tensor by a ``method``; the output has the first one's layout. A recipe
    in TOML (``merge("recipe.toml", "m.safetensors")``) merges any number of them in any order.

    Parameters
    ----------
    inputs:
        Adapters as for :func:`paramerge.bake` (a PaRa has no strength here), or checkpoints; text may have a
        scale or weight, and weights by block, behind it: ``"b.safetensors@0.3:MID=1"``. Or one recipe.
    output:
        The file to write, or a folder where the first checkpoint is one.
    method, parameters:
        Checkpoints: a name of docs/merge.md, ``weighted-sum`` by default, and its parameters: ``weights``,
        ``strength``, ``density``, ``seed`` ...
    blocks:
        Checkpoints: weights by block for the last model, or for the strength of the method.
    adapters:
        Checkpoints: adapters that are baked into the result, with one rounding in all.
    components:
        Checkpoints: files from which whole components are taken: ``{"vae": "v.safetensors"}``.
    only, variant:
        Checkpoints: as for :func:`paramerge.bake`; tensors that ``only`` does not choose stay as in the
        first.
    prune:
        Checkpoints: leave out EMA weights and a trainer's state.
    base:
        Adapters: the checkpoint, where the answer depends on it.
    merge, gamma:
        Of PaRas, merged or baked: as for :func:`paramerge.bake`.
    keep, rank, energy:
        Adapters: see :class:`~paramerge.merge.request.CombineOptions`.
    dtype:
        Of the output; by default fp16 for adapters, and each tensor's own for checkpoints.
    allow_unmatched:
        Go on without keys that are not understood; tensors that a checkpoint lacks are taken from the first.
    private:
        Leave the inputs' names out of the recipe.
    interpretation:
        The user's decisions where trainers of adapters disagree.
    rounding, accept_loss:
        As for :func:`paramerge.bake`.
    lift, content_hash, card:
        Checkpoints: as for :func:`paramerge.bake`.
    overwrite, rehash, progress:
        As for :func:`paramerge.bake`; for adapters ``progress`` counts layers.

    Raises
    ------
    ParamergeError
        See :func:`paramerge.merge.combine.combine` and :func:`paramerge.merge.checkpoints.plan.plan_merge`.
    """
    given = Given(inputs)
    asked = {
        option("method"): method,
        option("blocks"): blocks,
        "components": components,
        option("only"): tuple(only),
        option("prune"): prune,
        option("content_hash"): content_hash,
        option("card"): card,
        **{option(name): value for name, value in parameters.items()},
    }
    adapters = list(adapters)
    with hashing(rehash=rehash):
        if gives_checkpoint(given, asked=any(map(_is_asked, asked.values())) or bool(adapters)):
            refuse_options_of_adapters(base=base, keep=keep, rank=rank, energy=energy)
            plan = plan_merge(
                given.inputs, method=method, blocks=blocks, adapters=adapters, components=components,
                only=only, prune=prune, private=private, content_hash=content_hash, card=card,
                variant=variant, merge=merge, gamma=gamma, dtype=dtype, allow_unmatched=allow_unmatched,
                interpretation=interpretation, rounding=rounding, lift=lift,
                accept_loss=accept_loss, **parameters,
            )  # fmt: skip
            return plan.write(output, progress, overwrite=overwrite)
        written = {"rounding": rounding if rounding != "nearest" else None, "lift": lift}
        written = {option(name): value for name, value in written.items()}
        _refuse("a merge of adapters", {**asked, **written, option("accept_loss"): accept_loss})
        options = CombineOptions(merge, gamma, keep, rank, energy, dtype or "fp16", allow_unmatched, private)
        opened = open_given(given.adapters, interpretation=interpretation)
        return combine(
            [input_of(step) for step, _ in opened],
            [adapter for _, adapter in opened],
            as_path(output, "output"),
            options,
            None if base is None else opened_base(base),
            progress,
            overwrite=overwrite,
        )


def plan_merge(
    models: Iterable[PathLike | Base],
    *,
    method: str | None = None,
    blocks: BlockWeights | Mapping[str, float] | str | None = None,
    adapters: Iterable[Adapter | Step | PathLike | OpenedAdapter] = (),
    components: Mapping[str, PathLike] | None = None,
    only: Iterable[str] = (),
    prune: bool = False,
    private: bool = False,
    content_hash: bool | None = None,
    card: bool = False,
    variant: str | None = None,
    merge: Literal["joint", "sequential"] = "joint",
    gamma: float | None = None,
    dtype: str | None = None,
    allow_unmatched: bool = False,
    interpretation: Interpretation = BY_TRAINER,
    rounding: Rounding = "nearest",
    lift: str | None = None,
    accept_loss: bool = False,
    **parameters: object,
) -> Plan:
    """Plan :func:`merge` for every tensor of checkpoints; ``plan.write(output)`` carries it out.

    The parameters are those of :func:`merge`.

    Raises
    ------
    ParamergeError
        See :func:`paramerge.merge.checkpoints.plan.plan_merge`.
    """
    models = list(models)
    options = BakeOptions(
        merge,
        gamma,
        patterns(only),
        dtype or KEEP,
        allow_unmatched,
        private,
        content_hash,
        rounding=rounding,
        lift=lift,
        accept_loss=accept_loss,
        card=card,
    )
    steps = open_given(adapters, interpretation=interpretation)
    if len(models) == 1 and str(models[0]).endswith(".toml"):
        recipe = read_toml_recipe(Path(str(models[0])))
        asked = {option(name): value for name, value in parameters.items()}
        _refuse(
            "a recipe, which says what is merged",
            {option("method"): method, option("blocks"): blocks, **asked},
        )
        return _with_options(recipe, options, components, prune, variant).plan(
            [*open_given(recipe.adapters, interpretation=interpretation), *steps]
        )
    request = request_of(
        models,
        method,
        parameters,
        blocks=blocks,
        components=components,
        options=options,
        prune=prune,
        variant=variant,
    )
    return request.plan(steps)


def refuse_options_of_adapters(**options: object) -> None:
    """Refuse options that do not apply to checkpoints.

    Raises
    ------
    UsageError
    """
    _refuse("a merge of checkpoints", {option(name): value for name, value in options.items()})


def _with_options(
    recipe: TomlRecipe,
    options: BakeOptions,
    components: Mapping[str, PathLike] | None,
    prune: bool,
    variant: str | None,
) -> MergeRequest:
    """The recipe's request, with the options given beside it."""
    usual, own = BakeOptions(), recipe.request.options
    said = {
        name: value
        for name in BakeOptions.__dataclass_fields__
        if (value := getattr(options, name)) != getattr(usual, name)
    }
    return replace(
        recipe.request,
        options=replace(own, **said),
        components={**recipe.request.components, **(components or {})},
        prune=prune or recipe.request.prune,
        variant=variant or recipe.request.variant,
    )


def _is_asked(value: object) -> bool:
    return value is not None and value is not False and value not in ((), {})


def _refuse(what: str, options: Mapping[str, object]) -> None:
    named = [name for name, value in options.items() if _is_asked(value)]
    if named:
        raise UsageError(f"{' and '.join(named)} does not apply to {what}", where=named[0])
