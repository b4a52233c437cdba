"""A PaRa's basis has one reader: every verb counts the same directions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from baking import plan_of, small_model
from merging import merge

from paramerge.adapters import Adapter, ParaModule
from paramerge.apply.chain import load_bases
from paramerge.apply.operations import ParaOp
from paramerge.apply.steps import Step
from paramerge.bake.bake import bake
from paramerge.checkpoints.layout import open_base
from paramerge.compare.compare import compare
from paramerge.errors import AdapterError
from paramerge.files.dtypes import NUMPY
from paramerge.files.writer import write_safetensors
from paramerge.formats import open_adapter
from paramerge.inspect.inspection import AdapterFacts, inspect_path
from paramerge.resize.resize import resize

LAYER = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def para_of(path: Path, rank: int, columns: int, dtype: str, seed: int = 0) -> Path:
    """A PaRa of ``rank`` directions, stored as more ``columns``: the rest differ by rounding alone."""
    rng = np.random.default_rng(seed)
    B = rng.standard_normal((160, rank)) @ rng.standard_normal((rank, columns))
    write_safetensors(path, {f"{LAYER}.para_B": B.astype(NUMPY[dtype])}, {})
    return path


def module_of(adapter: Adapter) -> ParaModule:
    (module,) = adapter.modules.values()
    assert isinstance(module, ParaModule)
    return module


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_model(tmp_path_factory.mktemp("base") / "sd15.safetensors")


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2"])
def test_every_verb_counts_the_same_directions(dtype: str, base: Path, tmp_path: Path) -> None:
    path = para_of(tmp_path / "a.safetensors", 2, 4, dtype)
    other = para_of(tmp_path / "b.safetensors", 3, 3, "F32", seed=1)
    adapter = open_adapter(path)
    found = {"module": module_of(adapter).directions().rank}
    facts = inspect_path(path)
    assert isinstance(facts, AdapterFacts)
    found["inspect"] = facts.layers[0].directions or 0
    plan = plan_of(base, Step("para", path))
    ops = [op for edit in plan.edits for op in edit.ops if isinstance(op, ParaOp)]
    found["bake's basis"] = load_bases(ops[0])[0].shape[1]
    found["bake"] = bake(plan, tmp_path / "baked.safetensors").layers[0].removed
    found["merge"] = merge(tmp_path / "merged.safetensors", path).layers[0].ranks[0]
    removed = resize(adapter, tmp_path / "small.safetensors", energy=1.0, dtype="F32", base=open_base(base))
    found["resize"] = removed.layers[0].full_rank
    for name, against in (("compare", None), ("compare on a base", open_base(base))):
        compared = compare([adapter, open_adapter(other)], against).pairs[0].layers[0]
        found[name] = compared.ranks[0]
    assert set(found.values()) == {2}, found


@pytest.mark.parametrize("coarse", ["BF16", "F8_E5M2"])
def test_a_coarse_adapter_takes_no_directions_from_a_fine_one(coarse: str, tmp_path: Path) -> None:
    """Each basis has the cut of its own dtype, beside whatever it is compared with."""
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.standard_normal((160, 2)))[0]
    fine = np.stack([Q[:, 0], Q[:, 0] + 1e-3 * Q[:, 1]], axis=1).astype(np.float32)
    write_safetensors(tmp_path / "fine.safetensors", {f"{LAYER}.para_B": fine}, {})
    adapters = [
        open_adapter(tmp_path / "fine.safetensors"),
        open_adapter(para_of(tmp_path / "coarse.safetensors", 1, 1, coarse)),
    ]
    assert module_of(adapters[0]).directions().rank == 2
    assert compare(adapters).pairs[0].layers[0].ranks == (2, 1)


def test_a_basis_that_rounding_alone_could_make_is_refused(tmp_path: Path) -> None:
    path = para_of(tmp_path / "a.safetensors", 64, 64, "F8_E5M2")
    with pytest.raises(AdapterError, match="so coarsely"):
        module_of(open_adapter(path)).directions()


def test_a_basis_of_zeros_has_no_directions(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {f"{LAYER}.para_B": np.zeros((160, 2), np.float16)}, {})
    module = module_of(open_adapter(path))
    assert module.directions().rank == 0
    with pytest.raises(AdapterError, match="names no direction"):
        module.some_directions()


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
@pytest.mark.parametrize("columns", [15, 40, 56, 63, 128, 200])
def test_a_stored_direction_is_kept_or_refused(tmp_path: Path, dtype: str, columns: int) -> None:
    """Near the limit of 8 bits the rounding's bound is above what directions keep: none may go in silence."""
    Q, _ = np.linalg.qr(np.random.default_rng(columns).standard_normal((columns, columns)))
    write_safetensors(tmp_path / "a.safetensors", {f"{LAYER}.para_B": Q.astype(NUMPY[dtype])}, {})
    module = module_of(open_adapter(tmp_path / "a.safetensors"))
    if columns * {"F8_E4M3": 2.0**-8, "F8_E5M2": 2.0**-6}[dtype] < 0.64:
        assert module.directions().Q.shape == (columns, columns)
    else:
        with pytest.raises(AdapterError, match="so coarsely"):
            module.directions()
