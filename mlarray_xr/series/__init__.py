"""Series of frames: taken one after the other, apart, aligned, and always from the file."""
