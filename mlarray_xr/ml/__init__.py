"""Training and inference: collections of files, patches of them, and bridges to libraries."""
