"""Loading a program: what is none is told in one line; sums apart from products add the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ezm_pl.programs.library import Library
from ezm_pl.programs.making import _APART


def test_a_library_of_something_else_is_no_program() -> None:
    (other,) = (Path(torch.__file__).parent / "lib").glob("libc10.*")
    with pytest.raises(RuntimeError, match=r"libc10.* is no program"):
        Library(other)


@pytest.mark.parametrize("scales", [{}, {"beta": 0.5, "alpha": 2.0}])
def test_sums_apart_from_products_are_the_same(scales: dict[str, float]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, a, b = (torch.randn(3, *shape, generator=generator) for shape in ((4, 5), (4, 6), (6, 5)))
    for operation, apart in _APART.items():
        one_by_one = operation is not torch.ops.aten.baddbmm.default
        given = (x[0, 0], a[0], b[0]) if one_by_one else (x, a, b)
        named = {} if operation is torch.ops.aten._addmm_activation.default else scales
        torch.testing.assert_close(apart(*given, **named), operation(*given, **named))
