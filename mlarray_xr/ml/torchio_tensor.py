"""FileTensor: a tensor whose elements stay in a file until an operation needs them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, SupportsIndex

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mlarray_xr.ml.torchio_volume import ImageVolume
    from mlarray_xr.planning.grid import Box

__all__ = ["FileTensor"]


def _getters(*names: str) -> set[Callable[..., Any]]:
    """Return what torch hands to `__torch_function__` when these attributes are asked for."""
    return {getattr(torch.Tensor, name).__get__ for name in names}


_OF_SHAPE = _getters("nbytes", "ndim", "shape") | {
    torch.Tensor.__len__,
    torch.Tensor.dim,
    torch.Tensor.numel,
    torch.Tensor.size,
}
"""What the shape alone answers."""

_OF_TYPE = _getters("device", "dtype", "is_cuda", "is_meta", "itemsize", "layout") | {
    torch.Tensor.element_size,
    torch.Tensor.is_complex,
    torch.Tensor.is_floating_point,
    torch.Tensor.type,
    torch.is_complex,
    torch.is_floating_point,
}
"""What an empty tensor of the same type answers alike."""


class FileTensor(torch.Tensor):
    """The (channels, i, j, k) tensor of one file. Slicing it reads the slice, and nothing else.

    TorchIO takes patches by slicing the tensor of an image: an image with such a tensor reads its
    patches from the file. Shape and type are known without reading. Any other operation reads the
    whole file, once per tensor, and works on what was read; masks, lists and steps as index do,
    too. Copies and pickles hold the address alone until then.

    Parameters
    ----------
    volume
        What to read.

    Examples
    --------
    >>> import mlarray_xr
    >>> from mlarray_xr.ml.torchio_volume import ImageVolume
    >>> _ = mlarray_xr.to_mla(np.arange(24, dtype="int16").reshape(2, 3, 4), "tensor.mla")
    >>> tensor = FileTensor(ImageVolume.open("tensor.mla"))
    >>> tensor.shape, tensor.dtype
    (torch.Size([1, 2, 3, 4]), torch.int16)
    >>> tensor[:, 1:, 0:2, 2:]
    tensor([[[[14, 15],
              [18, 19]]]], dtype=torch.int16)
    >>> tensor.is_read, int(tensor.max()), tensor.is_read
    (False, 23, True)
    """

    volume: ImageVolume
    """What is read."""
    prototype: torch.Tensor
    """An empty tensor of the same type."""
    _whole: torch.Tensor | None
    """All elements, from when they were read."""

    def __new__(cls, volume: ImageVolume) -> Self:
        """Make a tensor of the file's shape and type, without memory."""
        empty = torch.from_numpy(np.empty(0, volume.dtype))
        # On "meta", what torch does without asking `__torch_function__` fails, and never reads
        # memory that holds nothing.
        self = torch.empty(volume.shape, dtype=empty.dtype, device="meta").as_subclass(cls)
        self.volume, self.prototype, self._whole = volume, empty, None
        return self

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Answer what shape and type answer; do everything else with what the file holds."""
        named = dict(kwargs or {})
        if func in _OF_SHAPE:
            return super().__torch_function__(func, types, args, named)  # type: ignore[no-untyped-call]
        if func in _OF_TYPE and len(args) == 1 and not named:
            return func(args[0].prototype)
        # `torchio.Image.load` joins the files of an image, of which there mostly is one.
        if func is torch.cat and len(args) == 1 and len(args[0]) == 1 and not named:
            return args[0][0]
        return func(*_read_in(args), **_read_in(named))

    @property
    def is_read(self) -> bool:
        """Whether all elements were read."""
        return self._whole is not None

    def read(self) -> torch.Tensor:
        """Return all elements, always the same ordinary tensor."""
        if self._whole is None:
            self._whole = self._read_box(tuple((0, n) for n in self.volume.shape))
        return self._whole

    def __getitem__(self, key: Any) -> torch.Tensor:
        """Read a slice into new memory, or index what was read."""
        indices = _basic(key, self.volume.shape)
        if self._whole is not None or indices is None:
            return self.read()[key]
        box = tuple((i, i + 1) if isinstance(i, int) else (i.start, i.stop) for i in indices)
        return self._read_box(box)[tuple(0 if isinstance(i, int) else slice(None) for i in indices)]

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        """Return another tensor of the same file, or a copy of what was read."""
        # The volume is shared: what this process has opened serves all copies.
        copied = FileTensor(self.volume) if self._whole is None else self._whole.clone()
        memo[id(self)] = copied
        return copied

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        """Return the address, or what was read, which processes then share as torch has it."""
        if self._whole is None:
            return FileTensor, (self.volume,)
        return _same, (self._whole,)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """Describe address, shape and type; nothing is read."""
        shape, name = tuple(self.shape), self.volume.volume.address
        return f"FileTensor({name!r}, shape={shape}, dtype={self.dtype})"

    def _read_box(self, box: Box) -> torch.Tensor:
        """Read a box that may be empty."""
        shape = tuple(stop - start for start, stop in box)
        if 0 in shape:
            return self.prototype.new_empty(shape)
        return torch.from_numpy(self.volume.read(box))


def _same(tensor: torch.Tensor) -> torch.Tensor:
    """Return what was unpickled."""
    return tensor


def _read_in(argument: Any) -> Any:
    """Return an argument of a torch function with all elements of every `FileTensor` in it."""
    if isinstance(argument, FileTensor):
        return argument.read()
    if type(argument) in (list, tuple):
        return type(argument)(map(_read_in, argument))
    if type(argument) is dict:
        return {name: _read_in(value) for name, value in argument.items()}
    return argument


def _basic(key: Any, shape: tuple[int, ...]) -> tuple[int | slice, ...] | None:
    """Return an index or a slice per axis, inside; None when the key is anything else."""
    given = key if isinstance(key, tuple) else (key,)
    if len(given) > len(shape):
        return None
    indices: list[int | slice] = []
    for item, n in zip(given + (slice(None),) * (len(shape) - len(given)), shape, strict=True):
        if isinstance(item, slice):
            start, stop, step = item.indices(n)
            if step != 1:
                return None
            indices.append(slice(start, max(start, stop)))
        elif isinstance(item, int | np.integer) and not isinstance(item, bool) and -n <= item < n:
            indices.append(int(item) % n)
        else:
            return None
    return tuple(indices)
