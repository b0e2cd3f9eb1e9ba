"""Files shown to browsers' viewers and other programs over HTTP."""
