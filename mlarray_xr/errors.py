"""Every error this package raises, grouped by what a handler would do about it.

::

    MlaError
    ├── FormatError (ValueError)          the bytes are not a usable file: give it up
    │   ├── MetadataError                 the metadata entry is damaged, hostile or unknown
    │   └── ChunkError                    one chunk is damaged: other regions may still be read
    ├── LayoutError (ValueError)          no chunks and blocks satisfy the request: change it
    ├── GeometryError (ValueError)        the spatial question has no true answer here
    ├── ConversionError (ValueError)      the object cannot be expressed in the target format
    ├── SourceError (OSError)             the bytes could not be had: check the address
    │   ├── SourceChanged                 the file was replaced, truncated or removed meanwhile
    │   ├── SourceDenied (PermissionError)    the server refused the credentials: give others
    │   └── SourceTimeout (TimeoutError)      the server did not answer in time: try again later
    ├── TargetBusy (FileExistsError)      somebody else is writing this file: wait
    ├── AllocationError (MemoryError)     the result cannot fit this machine: read less at once
    └── MissingDependencyError (ImportError)   an optional package is needed: install the extra

Missing files, existing targets and wrong indices stay ``FileNotFoundError``, ``FileExistsError``
and ``IndexError``. Every class takes one message, so that it survives pickling back from a worker.
"""

from __future__ import annotations

__all__ = [
    "AllocationError",
    "ChunkError",
    "ConversionError",
    "FormatError",
    "GeometryError",
    "LayoutError",
    "MetadataError",
    "MissingDependencyError",
    "MlaError",
    "MlaWarning",
    "SourceChanged",
    "SourceDenied",
    "SourceError",
    "SourceTimeout",
    "TargetBusy",
]


class MlaError(Exception):
    """The root of every error that this package defines."""


class FormatError(MlaError, ValueError):
    """Raised on opening when bytes are not a complete, safe `.mla` or `.b2nd` frame."""


class MetadataError(FormatError):
    """Raised on opening when the metadata entry is damaged, hostile or of no known generation."""


class ChunkError(FormatError):
    """Raised on reading when a stored chunk or the chunk index is damaged."""


class LayoutError(MlaError, ValueError):
    """Raised by the planner when no chunk and block shapes satisfy the request."""


class GeometryError(MlaError, ValueError):
    """Raised by geometry and the accessor when a spatial question has no true answer."""


class ConversionError(MlaError, ValueError):
    """Raised by writers and converters when an object cannot be expressed in the target format."""


class SourceError(MlaError, OSError):
    """Raised by storage when the bytes of a file cannot be had."""


class SourceChanged(SourceError):
    """Raised on reading when the file was replaced, truncated or removed since it was opened."""


class SourceDenied(SourceError, PermissionError):
    """Raised on reading when a server refuses the credentials, or refuses to go without any."""


class SourceTimeout(SourceError, TimeoutError):
    """Raised on reading when a server did not answer in time, however often it was asked."""


class TargetBusy(MlaError, FileExistsError):
    """Raised by writers when another one is at work on the same file; the message names it."""


class AllocationError(MlaError, MemoryError):
    """Raised on reading when the result is larger than the machine's memory."""


class MissingDependencyError(MlaError, ImportError):
    """Raised at a door when an optional package is not installed; the message names the extra."""


class MlaWarning(UserWarning):
    """The category of every warning of this package."""
