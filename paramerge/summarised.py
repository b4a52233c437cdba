"""Objects with thousands of layers, shown by a few facts: one line as text, a small table in a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from paramerge.errors import printable, shortened


class Summarised:
    """An object that is shown by :meth:`summary`. Dataclasses need ``repr=False``, or theirs is shown."""

    def summary(self) -> Mapping[str, object]:
        """The facts, by their names; None and empty ones are not shown."""
        raise NotImplementedError

    def _shown(self) -> dict[str, str]:
        return {
            name: shortened(printable(str(value)))
            for name, value in self.summary().items()
            if value not in (None, "", ())
        }

    def __repr__(self) -> str:
        facts = ", ".join(f"{name}={value}" for name, value in self._shown().items())
        return f"<{type(self).__name__} {facts}>"

    def _repr_html_(self) -> str:
        """The table that Jupyter shows."""
        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(name)}</th>"
            f"<td style='text-align:left'>{escape(value)}</td></tr>"
            for name, value in self._shown().items()
        )
        return f"<table><caption>{type(self).__name__}</caption>{rows}</table>"
