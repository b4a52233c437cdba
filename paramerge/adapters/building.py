"""From the keys of a layer to the modules of its family."""

from __future__ import annotations

from paramerge.adapters.contract import LayerModule
from paramerge.adapters.group import Group
from paramerge.adapters.registry import form_of, forms_beside
from paramerge.adapters.rules import Rules


def build(group: Group, rules: Rules) -> list[LayerModule]:
    """The modules that a layer's keys are: of its weight, and of its bias where there is one.

    Raises
    ------
    AdapterError
        Keys are missing, or of several families.
    ShapeError
        They do not fit together.
    """
    form = form_of(group)
    modules = [] if form is None or form.build is None else list(form.build(group, rules))
    for beside in forms_beside(group):
        if beside.build is not None:
            modules += beside.build(group, rules)
    group.finish()
    return modules
