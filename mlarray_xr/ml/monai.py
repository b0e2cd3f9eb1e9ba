"""MONAI: `.mla` files in `LoadImaged` pipelines, and patches as `MetaTensor`.

Install with ``pip install mlarray-xr[monai]``.
"""

from __future__ import annotations

try:
    import monai  # noqa: F401 - what follows needs it, and says it less well
except ImportError as error:
    from mlarray_xr.errors import MissingDependencyError

    msg = "mlarray_xr.ml.monai needs MONAI. To fix: pip install mlarray-xr[monai]"
    raise MissingDependencyError(msg) from error

from mlarray_xr.ml.monai_loading import LoadMlad
from mlarray_xr.ml.monai_reader import MlaReader
from mlarray_xr.ml.monai_samples import AsMetaTensord

__all__ = ["AsMetaTensord", "LoadMlad", "MlaReader"]
