"""Bytes in motion: where files are mapped, decoded, encoded and published."""
