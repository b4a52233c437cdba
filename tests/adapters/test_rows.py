"""Runs of rows of a change: any block of them is that block of the whole."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from paramerge.adapters.changes import Difference, Kronecker, Rows

_RUN = st.tuples(st.integers(0, 12), st.integers(0, 12)).map(lambda ends: (min(ends), max(ends)))


@given(runs=st.lists(_RUN, min_size=1, max_size=4), data=st.data())
def test_any_block_of_any_runs(runs: list[tuple[int, int]], data: st.DataObject) -> None:
    rng = np.random.default_rng(0)
    of = data.draw(
        st.sampled_from(
            [
                Difference(rng.standard_normal((12, 5))),
                Kronecker(rng.standard_normal((3, 2)), rng.standard_normal((4, 3)), 0.5),
            ]
        )
    )
    rows = Rows(of, tuple(runs))
    wanted = np.concatenate([of.whole()[start:stop] for start, stop in runs])
    assert rows.shape == wanted.shape
    start = data.draw(st.integers(0, len(wanted)))
    stop = data.draw(st.integers(start, len(wanted)))
    assert np.array_equal(rows.rows(start, stop), wanted[start:stop])
