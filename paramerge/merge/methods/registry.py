"""The merge methods that there are: those of this package, then those that other packages add.

A package adds one by an entry point of the group ``paramerge.merge_methods`` that names its :class:`Method`.
"""

from __future__ import annotations

from paramerge.kinds import Registry
from paramerge.merge.methods.add_difference import ADD_DIFFERENCE
from paramerge.merge.methods.breadcrumbs import BREADCRUMBS
from paramerge.merge.methods.cosine_a import COSINE_A
from paramerge.merge.methods.cosine_b import COSINE_B
from paramerge.merge.methods.dare import DARE
from paramerge.merge.methods.della import DELLA
from paramerge.merge.methods.geometric_median import GEOMETRIC_MEDIAN
from paramerge.merge.methods.method import Method
from paramerge.merge.methods.model_stock import MODEL_STOCK
from paramerge.merge.methods.perpendicular import PERPENDICULAR
from paramerge.merge.methods.slerp import SLERP
from paramerge.merge.methods.ties import TIES
from paramerge.merge.methods.train_difference import TRAIN_DIFFERENCE
from paramerge.merge.methods.weighted_sum import WEIGHTED_SUM

BUILT_IN = (
    WEIGHTED_SUM,
    ADD_DIFFERENCE,
    TRAIN_DIFFERENCE,
    SLERP,
    COSINE_A,
    COSINE_B,
    TIES,
    DARE,
    DELLA,
    BREADCRUMBS,
    MODEL_STOCK,
    GEOMETRIC_MEDIAN,
    PERPENDICULAR,
)


REGISTRY: Registry[Method] = Registry(
    Method, "merge method", "paramerge.merge_methods", BUILT_IN, names=lambda method: (method.name,)
)


def named_method(name: str) -> Method:
    """The method of this name, also written with underscores; UsageError where there is none."""
    return REGISTRY.named(name.replace("_", "-").lower())
