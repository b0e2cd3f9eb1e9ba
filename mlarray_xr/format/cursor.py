"""A bounds-checked reader over untrusted bytes, for the few msgpack forms a frame uses."""

from __future__ import annotations

from dataclasses import dataclass

from mlarray_xr.errors import FormatError

__all__ = ["Cursor"]


@dataclass(slots=True)
class Cursor:
    """Reads tagged big-endian values one after another and refuses whatever is out of place.

    Frames are written by one library in one fixed form, so every tag has exactly one legal value;
    a general msgpack parser would accept forms that the C library then reads differently.
    """

    data: bytes
    position: int = 0
    what: str = "frame"

    def take(self, n_bytes: int) -> bytes:
        """Return the next `n_bytes` bytes; `FormatError` when they are not there."""
        stop = self.position + n_bytes
        if n_bytes < 0 or stop > len(self.data):
            msg = (
                f"{self.what}: {n_bytes} bytes wanted at byte {self.position}, "
                f"only {len(self.data) - self.position} are left: the file is truncated or damaged"
            )
            raise FormatError(msg)
        piece = self.data[self.position : stop]
        self.position = stop
        return piece

    def expect(self, literal: bytes) -> None:
        """Consume `literal`; `FormatError` when other bytes stand there."""
        at = self.position
        found = self.take(len(literal))
        if found != literal:
            msg = (
                f"{self.what}: {literal.hex(' ')} expected at byte {at}, found {found.hex(' ')}: "
                "this is not a Blosc2 frame, or it is damaged"
            )
            raise FormatError(msg)

    def integer(self, tag: int, n_bytes: int, *, signed: bool) -> int:
        """Consume a tag byte and the big-endian integer behind it."""
        self.expect(bytes([tag]))
        return int.from_bytes(self.take(n_bytes), "big", signed=signed)

    def i16(self) -> int:
        """Consume `d1` and a signed 16-bit integer."""
        return self.integer(0xD1, 2, signed=True)

    def i32(self) -> int:
        """Consume `d2` and a signed 32-bit integer."""
        return self.integer(0xD2, 4, signed=True)

    def i64(self) -> int:
        """Consume `d3` and a signed 64-bit integer."""
        return self.integer(0xD3, 8, signed=True)

    def names(self) -> list[tuple[str, int]]:
        """Consume a metalayer map: entries of a short string and a 32-bit offset."""
        self.expect(b"\x93\xcd")
        self.take(2)  # the size of the map; its meaning differs between header and trailer
        self.expect(b"\xde")
        count = int.from_bytes(self.take(2), "big")
        found: list[tuple[str, int]] = []
        for _ in range(count):
            at = self.position
            tag = self.take(1)[0]
            if not 0xA1 <= tag <= 0xBF:
                msg = f"{self.what}: a metalayer name was expected at byte {at}, found {tag:#x}"
                raise FormatError(msg)
            try:
                name = self.take(tag & 0x1F).decode("utf-8")
            except UnicodeDecodeError as error:
                msg = f"{self.what}: the metalayer name at byte {at} is not UTF-8"
                raise FormatError(msg) from error
            found.append((name, self.i32()))
        self.expect(b"\xdc")
        if int.from_bytes(self.take(2), "big") != count or len(dict(found)) != count:
            msg = (
                f"{self.what}: the metalayer map names {count} entries but does not list them once"
            )
            raise FormatError(msg)
        return found
