"""Parents of the structures of a subset."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms

from distill.data import Dataset


@pytest.mark.parametrize(
    ("parent", "kept", "expected"),
    [
        ([-1, 0, 1], [0, 2], [-1, 0]),  # one left out
        ([-1, 0, 1, 2, 2], [0, 3, 4], [-1, 0, 0]),  # a chain of two
        ([-1, 0, 1, 2], [2, 3], [-1, 0]),  # all ancestors left out
        ([3, 0, 1, -1], [2, 3], [1, -1]),  # a parent that stands later
        ([1, 0, 1, 9], [2, 3], [-1, -1]),  # a ring, and one that is not there
    ],
)
def test_a_parent_that_is_left_out_gives_way_to_its_own(parent, kept, expected):
    dataset = Dataset.from_structures([Atoms("H")] * len(parent), "t", "o", parent=np.array(parent))
    assert dataset.subset(kept).parent.tolist() == expected
