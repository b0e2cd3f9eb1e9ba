"""Arguments of the command line: texts that become sizes, windows, amounts and schedulers."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING

from mlarray_xr.planning.byte_amount import parse_bytes

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001 - has no public name

__all__ = [
    "Commands",
    "access",
    "add_storage_options",
    "count",
    "memory",
    "names",
    "port",
    "scheduler",
    "seconds",
    "shape",
    "size",
    "sizes",
    "storage_option",
]

_WHOLE_AXIS = "-1"
_MOST_PORT = 65535
_ADDRESSES = ("tcp://", "tls://", "ucx://", "ws://", "wss://")


def sizes(text: str) -> int | tuple[int, ...]:
    """Read one extent for all axes, or one per axis.

    Examples
    --------
    >>> sizes("64"), sizes("32,64,64")
    (64, (32, 64, 64))
    """
    entries = text.split(",")
    if not all(entry.strip().isdecimal() and int(entry) > 0 for entry in entries):
        raise argparse.ArgumentTypeError(f"{text!r} is not N or A,B,C with numbers above 0")
    extents = tuple(map(int, entries))
    return extents[0] if len(extents) == 1 else extents


def size(text: str) -> int:
    """Read one extent."""
    extent = sizes(text)
    if not isinstance(extent, int):
        raise argparse.ArgumentTypeError(f"{text!r} is not one number above 0")
    return extent


def port(text: str) -> int:
    """Read a port; 0 stands for a free one."""
    if not text.isdecimal() or int(text) > _MOST_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 0 to {_MOST_PORT}")
    return int(text)


def shape(text: str) -> tuple[int, int, int]:
    """Read three extents."""
    match sizes(text):
        case (z, y, x):
            return z, y, x
    raise argparse.ArgumentTypeError(f"{text!r} is not Z,Y,X with numbers above 0")


def count(text: str) -> int:
    """Read a number of things."""
    return size(text)


def access(text: str) -> tuple[tuple[int, ...], float]:
    """Read a window, in which -1 is a whole axis, and how often it is read: once if not said.

    Examples
    --------
    >>> access("64,64,64:10"), access("1,-1,-1")
    (((64, 64, 64), 10.0), ((1, -1, -1), 1.0))
    """
    window, sign, weight = text.partition(":")
    entries = [entry.strip() for entry in window.split(",")]
    sound = all(e == _WHOLE_AXIS or (e.isdecimal() and int(e) > 0) for e in entries)
    number = _number(weight) if sign else 1.0
    if not sound or number is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not A,B,C:WEIGHT with numbers above 0, or -1 for a whole axis"
        )
    return tuple(map(int, entries)), number


def names(text: str) -> tuple[str, ...]:
    """Read the names of dimensions.

    Examples
    --------
    >>> names("time,z,y,x")
    ('time', 'z', 'y', 'x')
    """
    found = tuple(name.strip() for name in text.split(","))
    if not all(found) or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of different names such as z,y,x")
    return found


def storage_option(text: str) -> tuple[str, str | bool]:
    """Read ``name=value`` of the command line; ``true`` and ``false`` are what they say.

    Examples
    --------
    >>> storage_option("anon=true"), storage_option("endpoint_url=http://127.0.0.1:9000")
    (('anon', True), ('endpoint_url', 'http://127.0.0.1:9000'))
    """
    name, mark, value = text.partition("=")
    if not name or not mark:
        msg = f"{text!r} is no option. To fix: name=value, such as anon=true"
        raise argparse.ArgumentTypeError(msg)
    return name, {"true": True, "false": False}.get(value.lower(), value)


def add_storage_options(command: argparse.ArgumentParser) -> None:
    """Add the option that tells how to get at URLs."""
    command.add_argument(
        "--storage-option",
        action="append",
        default=[],
        type=storage_option,
        metavar="NAME=VALUE",
        dest="storage_options",
        help="how to get at a URL, such as anon=true; secrets are better in the environment",
    )


def seconds(text: str) -> float:
    """Read a time.

    Examples
    --------
    >>> seconds("0.5")
    0.5
    """
    number = _number(text)
    if number is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return number


def memory(text: str) -> int:
    """Read an amount of memory, in bytes.

    Examples
    --------
    >>> memory("2GB")
    2000000000
    """
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def scheduler(text: str) -> str | int | None:
    """Read what computes: None for threads, a number of processes, or the address of a cluster.

    Examples
    --------
    >>> scheduler("threads"), scheduler("local:4"), scheduler("tcp://10.0.0.1:8786")
    (None, 4, 'tcp://10.0.0.1:8786')
    """
    if text == "threads":
        return None
    kind, _, number = text.partition(":")
    if kind == "local" and number.isdecimal() and int(number) > 0:
        return int(number)
    if text.startswith(_ADDRESSES):
        return text
    raise argparse.ArgumentTypeError(
        f"{text!r} is not threads, local:N, or an address such as tcp://10.0.0.1:8786"
    )


def _number(text: str) -> float | None:
    """Return a finite number above 0; None for other texts."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 < number < math.inf else None
