"""The bytes of a file as a Zarr array, without a copy."""
