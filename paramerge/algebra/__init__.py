"""The linear algebra of PaRa and LoRA: pure functions on NumPy arrays and torch tensors alike.

``W`` is d x k, rows are output features (:func:`flatten_conv` for a convolution); ``Q`` is d x r with
orthonormal columns; ``P = Q Q^T`` is never formed. See ``arrays`` for dtypes and precision.
"""

from paramerge.algebra.angles import (
    SubspacePair,
    compare_subspaces,
    friedrichs_cosine,
    principal_angles,
    shared_dimension,
)
from paramerge.algebra.arrays import storage_tolerance
from paramerge.algebra.boundary import Bounded, adjusted_rank, rank_boundary
from paramerge.algebra.interaction import lora_cosine, lora_loss, lora_survival, null_space_projection
from paramerge.algebra.lowrank import (
    TruncatedLora,
    concat_loras,
    leading_output_directions,
    truncate_lora,
)
from paramerge.algebra.merging import (
    graded_joint_basis,
    iterate_sequential,
    removed_rank_joint,
    removed_rank_sequential,
    sequential_error,
)
from paramerge.algebra.para import (
    flatten_conv,
    numerical_rank,
    project,
    reduce,
    removed_rank,
    unflatten_conv,
)
from paramerge.algebra.paralora import naive_combination, para_then_lora, para_to_lora
from paramerge.algebra.subspace import (
    JointBasis,
    Orthonormal,
    joint_basis,
    orthonormalise,
    require_full_rank,
    require_orthonormal,
)

__all__ = [
    "Bounded",
    "JointBasis",
    "Orthonormal",
    "SubspacePair",
    "TruncatedLora",
    "adjusted_rank",
    "compare_subspaces",
    "concat_loras",
    "flatten_conv",
    "friedrichs_cosine",
    "graded_joint_basis",
    "iterate_sequential",
    "joint_basis",
    "leading_output_directions",
    "lora_cosine",
    "lora_loss",
    "lora_survival",
    "naive_combination",
    "null_space_projection",
    "numerical_rank",
    "orthonormalise",
    "para_then_lora",
    "para_to_lora",
    "principal_angles",
    "project",
    "rank_boundary",
    "reduce",
    "removed_rank",
    "removed_rank_joint",
    "removed_rank_sequential",
    "require_full_rank",
    "require_orthonormal",
    "sequential_error",
    "shared_dimension",
    "storage_tolerance",
    "truncate_lora",
    "unflatten_conv",
]
