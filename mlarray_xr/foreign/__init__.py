"""Foreign formats to `.mla` and back, one module per format."""
