"""Arrays, layouts and indexers for property tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from hypothesis import strategies as st
from xarray.testing.strategies import basic_indexers, outer_array_indexers, vectorized_indexers

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

__all__ = [
    "Stored",
    "boxes",
    "dtypes",
    "filled_boxes",
    "isel_of",
    "keys",
    "layouts",
    "mixed_shapes",
    "shapes",
    "stored",
    "values_of",
]

Shape: TypeAlias = tuple[int, ...]

NUMBERS = ("?", "u1", "<i2", ">i2", "<u4", "<i8", "<f2", "<f4", ">f8", "<c16")
OTHERS = ("<M8[ns]", "<m8[s]", "S3", "<U2")


@dataclass(frozen=True)
class Stored:
    """What goes into one file."""

    values: NDArray[Any]
    chunks: Shape
    blocks: Shape


def dtypes() -> st.SearchStrategy[np.dtype[Any]]:
    return st.sampled_from([np.dtype(name) for name in (*NUMBERS, *OTHERS)])


def shapes(
    *, min_dims: int = 0, max_dims: int = 4, min_side: int = 0, max_side: int = 9
) -> st.SearchStrategy[Shape]:
    side = st.integers(min_side, max_side)
    return st.lists(side, min_size=min_dims, max_size=max_dims).map(tuple)


def mixed_shapes() -> st.SearchStrategy[Shape]:
    """Draw shapes up to 5-D; as most of many axes hold an empty one, every other is of none."""
    return st.one_of(
        shapes(max_dims=5, max_side=7), shapes(min_dims=1, max_dims=3, min_side=4, max_side=12)
    )


def values_of(shape: Shape, dtype: np.dtype[Any], seed: int) -> NDArray[Any]:
    """Fill an array so that neighbours differ and no element is more likely than another."""
    numbers = np.random.default_rng(seed).integers(0, 100, shape)
    return numbers.astype("U2").astype(dtype) if dtype.kind in "SU" else numbers.astype(dtype)


@st.composite
def layouts(draw: st.DrawFn, shape: Shape) -> tuple[Shape, Shape]:
    """Draw chunks, and blocks that need not divide them; 1 on empty axes."""
    chunks = tuple(draw(st.integers(1, max(n, 1))) for n in shape)
    blocks = tuple(draw(st.integers(1, chunk)) for chunk in chunks)
    return chunks, blocks


@st.composite
def stored(
    draw: st.DrawFn, *, min_dims: int = 0, max_dims: int = 4, min_side: int = 0, max_side: int = 9
) -> Stored:
    shape = draw(shapes(min_dims=min_dims, max_dims=max_dims, min_side=min_side, max_side=max_side))
    chunks, blocks = draw(layouts(shape))
    values = values_of(shape, draw(dtypes()), draw(st.integers(0, 2**16)))
    return Stored(values, chunks, blocks)


@st.composite
def boxes(draw: st.DrawFn, shape: Shape) -> tuple[tuple[int, int], ...]:
    pairs = [sorted((draw(st.integers(0, n)), draw(st.integers(0, n)))) for n in shape]
    return tuple((start, stop) for start, stop in pairs)


@st.composite
def filled_boxes(draw: st.DrawFn, shape: Shape) -> tuple[tuple[int, int], ...]:
    """Draw boxes that are empty only where the shape is."""
    starts = [draw(st.integers(0, max(n - 1, 0))) for n in shape]
    stops = [draw(st.integers(min(a + 1, n), n)) for a, n in zip(starts, shape, strict=True)]
    return tuple(zip(starts, stops, strict=True))


@st.composite
def keys(draw: st.DrawFn, shape: Shape) -> tuple[Any, ...]:
    """Draw a NumPy key of slices, integers, an ellipsis and at most one list or mask."""
    key: list[Any] = []
    has_list = False
    for n in shape:
        kinds = ["slice", "slice", *(["integer"] if n and not has_list else [])]
        kinds += ["list", "mask"] if n and not has_list and int not in map(type, key) else []
        kind = draw(st.sampled_from(kinds))
        has_list |= kind in ("list", "mask")
        if kind == "integer":
            key.append(draw(st.integers(-n, n - 1)))
        elif kind == "list":
            key.append(draw(st.lists(st.integers(-n, n - 1), min_size=1, max_size=n + 2)))
        elif kind == "mask":
            key.append(np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n))))
        else:
            key.append(draw(st.slices(n)))
    cut = draw(st.integers(0, len(shape)))
    if draw(st.booleans()):
        return (*key[:cut], ..., *key[cut:]) if not has_list else tuple(key)
    return tuple(key) if has_list else tuple(key[:cut])


@st.composite
def isel_of(draw: st.DrawFn, array: xr.DataArray) -> dict[Any, Any]:
    """Draw a basic, orthogonal or pointwise selection that the array allows."""
    filled = {dim: n for dim, n in array.sizes.items() if n}
    # Hypothesis draws steps of 2**63 for empty axes, xarray 2026.9 cannot represent them.
    empty = st.sampled_from([slice(None), slice(None, None, -2), slice(0, 0)])
    kinds: list[st.SearchStrategy[dict[Any, Any]]] = [
        st.fixed_dictionaries({dim: st.slices(n) if n else empty for dim, n in array.sizes.items()})
    ]
    if filled:
        kinds += [basic_indexers(sizes=filled), outer_array_indexers(sizes=filled, min_dims=1)]
    if len(filled) > 1:
        kinds.append(vectorized_indexers(sizes=filled))
    return draw(st.one_of(kinds))
