"""Two adapters at one layer: the numbers for each combination of families."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from paramerge import algebra
from paramerge.adapters.overflow import beyond_float64
from paramerge.adapters.para import storage_cut
from paramerge.compare.spaces import LoraSpace, ParaSpace
from paramerge.models.names import ModuleName

_Pair = algebra.SubspacePair[np.ndarray]

_TRACY_WIDOM_MEAN = -1.2065
"""Mean of the largest eigenvalue of real ensembles, centred and scaled."""

RELATION_THRESHOLD = 0.1
"""From this cosine on two LoRAs are said to reinforce or to cancel each other: the squared norm of their sum
is then more than a tenth off that of independent ones."""


@dataclass(frozen=True)
class ParaPair:
    """PaRa and PaRa.

    Attributes
    ----------
    ranks:
        The true ranks of both bases.
    angles:
        Principal angles in degrees, ascending.
    shared:
        Directions that are in both spans.
    friedrichs:
        The cosine of the Friedrichs angle, which is ``||(I-P2)(I-P1) - (I-Pm)||_2``: the error of merging
        them one after the other (T3e).
    joint_rank, sequential_rank:
        Directions that each way of merging removes (T3r).
    chance:
        The Friedrichs cosine to be expected of spans that know nothing of each other.
    on_base:
        ``||(I-P2)(I-P1) W0 - (I-Pm) W0|| / ||W0||``, Frobenius; None without a base.
    """

    name: ModuleName
    ranks: tuple[int, int]
    angles: tuple[float, ...]
    shared: int
    friedrichs: float
    joint_rank: int
    sequential_rank: int
    chance: float
    on_base: float | None = None


@dataclass(frozen=True)
class MixedPair:
    """PaRa and LoRA; the PaRa is the first of ``ranks``.

    Attributes
    ----------
    norm:
        ``||s B A||_F``.
    lost:
        The share of the LoRA that a PaRa *after* it removes, ``||Q^T B A|| / ||B A||`` (T6). In the other
        order the LoRA loses nothing.
    chance:
        The share to be expected of directions that know nothing of each other.
    refilled:
        In the order PaRa, LoRA: the LoRA's part in the removed directions, relative to the removed weight,
        ``||Q^T s B A|| / ||Q^T W0||``. None without a base.
    """

    name: ModuleName
    ranks: tuple[int, int]
    norm: float
    lost: float
    chance: float
    refilled: float | None = None


@dataclass(frozen=True)
class LoraPair:
    """LoRA and LoRA, with the changes ``D1`` and ``D2``.

    Attributes
    ----------
    ranks:
        The ranks of both changes.
    norms:
        Their Frobenius norms.
    cosine:
        ``<D1, D2> / (||D1|| ||D2||)``, -1 to 1: above 0 they reinforce each other, below 0 they cancel.
    reinforcing, cancelling:
        The two parts whose difference is the cosine: input directions on which the outputs go together, and
        those on which they go against each other (eigenvalues of the symmetric part of ``D2^T D1``).
    output_overlap, input_overlap:
        The mean squared cosine of the principal angles of the column and of the row spaces, 0 to 1.
    output_chance, input_chance:
        The mean overlap of unrelated spaces of these ranks.
    output_angles, input_angles:
        The principal angles in degrees, ascending.
    """

    name: ModuleName
    ranks: tuple[int, int]
    norms: tuple[float, float]
    cosine: float
    reinforcing: float
    cancelling: float
    output_overlap: float
    input_overlap: float
    output_chance: float
    input_chance: float
    output_angles: tuple[float, ...]
    input_angles: tuple[float, ...]

    @property
    def relation(self) -> str:
        """``reinforce``, ``cancel`` or ``independent``, by :data:`RELATION_THRESHOLD`."""
        return relation_of(self.cosine)


def relation_of(cosine: float) -> str:
    """The relation of two LoRAs by the signed cosine of their changes."""
    if abs(cosine) < RELATION_THRESHOLD:
        return "independent"
    return "reinforce" if cosine > 0 else "cancel"


def compare_paras(
    name: ModuleName,
    first: ParaSpace,
    second: ParaSpace,
    rows: int,
    seen: np.ndarray | None = None,
    norm: float = 0.0,
) -> ParaPair:
    """Compare two spans; ``seen`` is ``U^T W0`` and ``norm`` is ``||W0||`` where there is a base."""
    rtol = storage_cut([first.module, second.module])
    Q1, Q2 = first.directions, second.directions
    pair = algebra.compare_subspaces(Q1, Q2, rtol=rtol)
    return ParaPair(
        name=name,
        ranks=pair.ranks,
        angles=_degrees(pair.angles),
        shared=pair.shared,
        friedrichs=pair.friedrichs_cosine,
        joint_rank=pair.joint_rank,
        sequential_rank=pair.sequential_rank,
        chance=random_cosine(*pair.ranks, rows),
        on_base=None if seen is None else _distance_on(seen, norm, Q1, Q2, rtol),
    )


def compare_mixed(
    name: ModuleName, para: ParaSpace, lora: LoraSpace, rows: int, seen: np.ndarray | None = None
) -> MixedPair:
    """Measure the share of the LoRA that the PaRa takes; ``seen`` is ``U^T W0`` where there is a base."""
    Q = para.directions
    change = lora.change
    norm = float(np.linalg.norm(change))
    if not math.isfinite(norm):
        raise beyond_float64(name)
    met = float(np.linalg.norm(Q.T @ change))
    refilled = None
    if seen is not None:
        removed = float(np.linalg.norm(Q.T @ seen))
        refilled = met / removed if removed else 0.0
    return MixedPair(
        name=name,
        ranks=(Q.shape[1], lora.module.rank),
        norm=norm,
        lost=min(1.0, met / norm) if norm else 0.0,
        chance=math.sqrt(Q.shape[1] / rows),
        refilled=refilled,
    )


def compare_loras(name: ModuleName, first: LoraSpace, second: LoraSpace, rows: int, columns: int) -> LoraPair:
    """Compare two changes to one weight."""
    outputs, inputs = _overlaps(first, second)
    D1, D2 = first.change, second.change
    norms = float(np.linalg.norm(D1)), float(np.linalg.norm(D2))
    scale = norms[0] * norms[1]
    if not math.isfinite(scale):
        raise beyond_float64(name)
    together = D2.T @ D1
    eigenvalues = np.linalg.eigvalsh((together + together.T) / 2)
    ranks = outputs.ranks
    return LoraPair(
        name=name,
        ranks=ranks,
        norms=norms,
        cosine=float(np.sum(D1 * D2)) / scale if scale else 0.0,
        reinforcing=float(eigenvalues[eigenvalues > 0].sum()) / scale if scale else 0.0,
        cancelling=-float(eigenvalues[eigenvalues < 0].sum()) / scale if scale else 0.0,
        output_overlap=_overlap(outputs.angles),
        input_overlap=_overlap(inputs.angles),
        output_chance=max(ranks) / rows,
        input_chance=max(ranks) / columns,
        output_angles=_degrees(outputs.angles),
        input_angles=_degrees(inputs.angles),
    )


def random_cosine(r1: int, r2: int, d: int) -> float:
    """The largest principal cosine to be expected of two random subspaces of R^d.

    Its square is the largest root of a Jacobi ensemble, whose logit is about Tracy-Widom distributed
    (Johnstone 2008, with his centring and scaling); 1 where the two do not fit beside each other.
    """
    if not r1 or not r2:
        return 0.0
    if r1 + r2 >= d:
        return 1.0
    narrow, wide = (2 * math.asin(math.sqrt((r - 0.5) / (d - 1))) for r in sorted((r1, r2)))
    spread = (16 / (d - 1) ** 2 / (math.sin(wide + narrow) ** 2 * math.sin(wide) * math.sin(narrow))) ** (
        1 / 3
    )
    logit = 2 * math.log(math.tan((wide + narrow) / 2)) + _TRACY_WIDOM_MEAN * spread
    return math.sqrt(1 / (1 + math.exp(-logit)))


def _overlaps(first: LoraSpace, second: LoraSpace) -> tuple[_Pair, _Pair]:
    """The overlaps of the column spaces and of the row spaces of two changes."""
    outputs = algebra.compare_subspaces(first.up, second.up)
    inputs = algebra.compare_subspaces(first.down, second.down)
    if outputs.ranks == inputs.ranks == (first.up.shape[1], second.up.shape[1]):
        return outputs, inputs
    # a factor of lower rank narrows the other side, too: only then are the products' own spaces needed
    (U1, V1), (U2, V2) = _directions(first), _directions(second)
    return algebra.compare_subspaces(U1, U2), algebra.compare_subspaces(V1, V2)


def _directions(lora: LoraSpace) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal bases of the output and the input directions of a change."""
    svd = algebra.truncate_lora(lora.up, lora.down.T)
    root = np.sqrt(svd.singular_values[: svd.rank])
    return svd.up / root, (svd.down / root[:, None]).T


def _overlap(angles: np.ndarray) -> float:
    return float(np.mean(np.cos(angles) ** 2)) if angles.size else 0.0


def _degrees(angles: np.ndarray) -> tuple[float, ...]:
    return tuple(float(angle) for angle in np.degrees(angles))


def _distance_on(seen: np.ndarray, norm: float, Q1: np.ndarray, Q2: np.ndarray, rtol: float) -> float:
    """The two ways of merging on this weight; outside the joint span both leave it as it is."""
    joint = algebra.reduce(seen, algebra.joint_basis([Q1, Q2], rtol=rtol).Q)
    sequence = algebra.reduce(algebra.reduce(seen, Q1), Q2)
    return float(np.linalg.norm(sequence - joint)) / norm if norm else 0.0
