"""DiffuseKronA: the contract for its default shapes and the paper's order, and its published forward."""

from __future__ import annotations

from pathlib import Path

import contracts
import numpy as np
import pytest
import torch
from family_cases import KRONA_CASES, KronaCase, krona_by_the_code, krona_by_the_paper
from hypothesis import given
from hypothesis import strategies as st
from strategies import generators, law

from paramerge.adapters.krona import KronaModule
from paramerge.errors import AdapterError
from paramerge.formats import open_adapter
from paramerge.interpretation import Interpretation

TO_K = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
TO_OUT = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
SHAPE = (320, 768)


class TestKrona(contracts.AdditiveContract):
    family = "krona"

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        pairs = [(case, layer) for case in KRONA_CASES for layer in (TO_K, TO_OUT)]
        names = [f"{case}-{layer.rpartition('attn')[2]}" for case, layer in pairs]
        metafunc.parametrize(("case", "layer"), pairs, ids=names)

    @pytest.fixture(autouse=True)
    def _true_sizes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """SD1.5's own: by them it is told from LoRA."""
        monkeypatch.setattr(contracts, "LAYERS", {TO_K: SHAPE, TO_OUT: (320, 320)})


def published_forward(x: torch.Tensor, down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """What the published layer computes of tokens (n, in): the input cut into (a2, b2), up from the left."""
    (a2, a1), (b1, b2) = down.shape, up.shape
    cut = x.reshape(-1, a2, b2).transpose(1, 2)
    return (up @ (cut @ down)).reshape(len(x), a1 * b1)


@law
@given(rng=generators(), sizes=st.tuples(*[st.integers(1, 5)] * 4))
def test_the_shuffled_product_is_the_published_layer(
    rng: np.random.Generator, sizes: tuple[int, int, int, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    a1, a2, b1, b2 = sizes
    down, up = rng.standard_normal((a2, a1)), rng.standard_normal((b1, b2))
    module = stored_module(tmp_path_factory.getbasetemp(), up, down)
    x = rng.standard_normal((3, a2 * b2))
    expected = published_forward(*map(torch.from_numpy, (x, down, up))).numpy()
    assert np.allclose(x @ module.delta().T, expected, rtol=0, atol=1e-12)
    # the same rows as the paper's product, in another order
    paper = np.kron(down.T, up)
    order = np.arange(a1 * b1).reshape(a1, b1).T.reshape(-1)
    assert np.allclose(module.delta(), paper[order], rtol=0, atol=1e-14)
    plain = KronaModule(module.name, module.up, module.down, shuffled=False)
    assert np.allclose(plain.delta(), paper, rtol=0, atol=1e-14)
    assert plain.norm() == pytest.approx(module.norm(), rel=1e-12)


def stored_module(folder: Path, up: np.ndarray, down: np.ndarray) -> KronaModule:
    from paramerge.files.header import read_header
    from paramerge.files.tensors import stored
    from paramerge.files.writer import write_safetensors
    from paramerge.models.names import ModuleName

    path = folder / "krona.safetensors"
    write_safetensors(path, {"up": up, "down": down}, {})
    header = read_header(path)
    return KronaModule(ModuleName("unet", "conv_in"), stored(header, "up"), stored(header, "down"))


def test_the_user_decides_the_order(tmp_path: Path) -> None:
    case = KRONA_CASES[1]
    path, tensors = case.write(tmp_path, {TO_K: SHAPE})
    zero = np.zeros(SHAPE)
    for order, formula in (
        ("code", krona_by_the_code),
        ("paper", krona_by_the_paper),
        (None, krona_by_the_code),
    ):
        (module,) = open_adapter(path, interpretation=Interpretation(krona=order)).modules.values()  # type: ignore[arg-type]
        assert np.allclose(module.delta(zero), formula(tensors[TO_K], zero, SHAPE), rtol=0, atol=1e-12)
        assert ("A (x) B" in module.form) == (order == "paper")


def test_an_unknown_order_is_refused(tmp_path: Path) -> None:
    case = KronaCase(
        "k", "krona", KRONA_CASES[0].make, KRONA_CASES[0].change, metadata={"krona.order": "other"}
    )
    path, _ = case.write(tmp_path, {TO_K: SHAPE})
    with pytest.raises(AdapterError, match="order of this DiffuseKronA's rows is not known"):
        open_adapter(path)
