"""Settings of what is trained: the method and its parameters."""

from __future__ import annotations

from dataclasses import dataclass

from paramerge.errors import UsageError
from paramerge.training.settings.option import at_least, finite, option

__all__ = ["METHODS", "AdapterSettings"]

METHODS = {
    "para": 1e-3,
    "lora": 1e-4,
    "dora": 1e-4,
    "oft": 1e-4,
    "boft": 1e-4,
    "loha": 1e-4,
    "lokr": 1e-4,
    "krona": 5e-4,
    "svdiff": 1e-3,
    "dreambooth": 5e-6,
    "textual-inversion": 5e-3,
}
"""The methods and the learning rate of each where none is given."""


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """The method, the layers, the rank and the start."""

    method: str = option("para", "What is trained.", tuple(METHODS))
    rank: int = option(4, "Rank of an adapter; the blocks of oft and boft are of this size.")
    alpha: float | None = option(None, "LoRA's alpha; by default the rank.")
    subset: str | None = option(
        None,
        "Which layers: for UNets a subset of the paper, by default ex-ca; attention, and for "
        "transformers blocks.",
    )
    train_text_encoder: bool = option(False, "Train the text encoders' attention, too.")
    gamma: float | None = option(None, "PaRa's rank boundary, such as 0.025.")
    gamma_on: str = option("all", "The layers of the rank boundary: 'conv' as in Table 3.", ("all", "conv"))
    orthonormalise: str = option(
        "auto",
        "PaRa's Q from B: Householder QR or CholeskyQR2; auto takes the latter on a GPU.",
        ("auto", "qr", "cholesky"),
    )
    init: str = option("least-energy", "How PaRa starts.", ("least-energy", "orthonormal", "gate", "soft"))
    gate_steps: int = option(100, "With init gate: steps until the gate is open.")
    krona_factors: tuple[int, int] = option((16, 4), "DiffuseKronA's a1 and a2: its down factor is (a2, a1).")
    pivotal: bool = option(False, "Train a new word together with the adapter; it is saved beside it.")
    placeholder: str = option(
        "<sks>", "The new word of textual inversion and pivotal; put it into the prompts."
    )
    initializer: str = option("", "A word of one token that the new one starts from.")
    placeholder_vectors: int = option(1, "The number of vectors of the new word.")
    placeholder_rate: float | None = option(None, "With pivotal: the new word's own learning rate.")

    def check_adapter(self) -> None:
        """Refuse settings out of range with a UsageError."""
        at_least(self, 1, ("rank", "placeholder_vectors"))
        at_least(self, 0, ("gate_steps",))
        finite(self, ("alpha", "placeholder_rate"), positive=True)
        if self.pivotal and self.method in ("textual-inversion", "dreambooth"):
            raise UsageError(
                "there is no adapter to train together with a word",
                where="pivotal",
                expected="a method that makes an adapter",
                found=self.method,
            )
