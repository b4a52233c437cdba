"""The promise on exactness where results nearly cancel: half a step of the output, and eps of what is summed.

``|out - exact| <= step / 2 + n eps (|W| + |s B| |A| + |Q| |Q^T| |W|)``, with eps 2^-24 for F16 and 8 bits and
2^-53 for all others; n counts what is summed: the ranks and 4, and with a PaRa the rows of the weight (for
eps 2^-24 at most 1,024, which is where sums go on in float64).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from baking import DTYPES, load, plan_of

from paramerge.apply.steps import Step
from paramerge.bake.bake import bake
from paramerge.files.writer import write_safetensors
from paramerge.formats import write_para
from paramerge.models.names import ModuleName

KEY = "model.layers.0.self_attn.q_proj"
ROWS, COLUMNS, RANK = 160, 96, 6
Wide = np.longdouble
UNIT = {"F64": 53, "F32": 24, "F16": 11, "BF16": 8, "F8_E4M3": 4, "F8_E5M2": 3}
LEAST = {"F64": -1022, "F32": -126, "BF16": -126, "F16": -14, "F8_E4M3": -6, "F8_E5M2": -14}


def half_step(exact: np.ndarray, dtype: str) -> np.ndarray:
    exponents = np.where(exact == 0, LEAST[dtype], np.frexp(np.asarray(exact, np.float64))[1] - 1)
    return np.ldexp(2.0 ** -UNIT[dtype], np.maximum(exponents, LEAST[dtype]))


@pytest.mark.parametrize("para", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("dtype", UNIT)
def test_where_results_nearly_cancel(tmp_path: Path, dtype: str, seed: int, para: bool) -> None:
    """A weight that is what the steps take away, but for its rounding; other elements are ordinary."""
    rng = np.random.default_rng(seed)
    B, A = (rng.normal(0, 0.3, shape).astype(np.float32) for shape in ((ROWS, RANK), (RANK, COLUMNS)))
    Q = np.linalg.qr(rng.standard_normal((ROWS, RANK)))[0]
    change = B.astype(Wide) @ A.astype(Wide)
    W = -np.asarray(change, np.float64)
    if para:
        W += Q @ rng.standard_normal((RANK, COLUMNS))
    W[::3] = rng.normal(0, 0.3, W[::3].shape)
    W = W.astype(DTYPES[dtype])
    folder = tmp_path / "base"
    folder.mkdir()
    embedding = {"model.embed_tokens.weight": W[:2].astype(np.float16)}
    write_safetensors(folder / "model.safetensors", {f"{KEY}.weight": W, **embedding}, {})
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    lora = tmp_path / "l.safetensors"
    write_safetensors(lora, {f"{KEY}.lora_B.weight": B, f"{KEY}.lora_A.weight": A}, {})
    steps = [Step("adapter", lora)]
    exact, sizes, n = W.astype(Wide), np.abs(W.astype(Wide)), RANK + 4
    if para:
        stored = Q.astype(np.float32)
        write_para(
            tmp_path / "p.safetensors", {ModuleName("model", KEY): stored}, architecture=None, dtype="F32"
        )
        steps.insert(0, Step("para", tmp_path / "p.safetensors"))
        Q = np.linalg.qr(stored.astype(np.float64))[0].astype(Wide)
        n += ROWS + RANK
        sizes = sizes + np.abs(Q) @ (np.abs(Q.T) @ sizes)
        exact = exact - Q @ (Q.T @ exact)
    exact = exact + change
    sizes = sizes + np.abs(B).astype(Wide) @ np.abs(A).astype(Wide)
    bake(plan_of(folder, *steps), tmp_path / "out")
    found = load(tmp_path / "out").tensors[f"{KEY}.weight"].astype(Wide)
    eps = 2.0**-24 if dtype in ("F16", "F8_E4M3", "F8_E5M2") else 2.0**-53
    allowed = half_step(np.maximum(np.abs(exact), np.abs(found)), dtype) + n * eps * sizes
    assert np.all(np.abs(found - exact) <= allowed)
    # and no more is promised than is needed: where nothing cancels, half a step decides
    ordinary = np.abs(exact) > sizes / 4
    assert np.mean(ordinary) > 0.02
    if dtype not in ("F64", "F32"):
        close = np.abs(found - exact) <= 1.01 * half_step(found, dtype)
        assert np.mean(close[ordinary]) > 0.999
