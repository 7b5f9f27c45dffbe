"""Property tests for compressors, layers and codecs: for this library, and for other people's."""

try:
    import hypothesis  # noqa: F401
except ImportError:
    raise ModuleNotFoundError(
        "minicompress.testing needs hypothesis: in the clone, python -m pip install '.[test]'",
        name="hypothesis",
    ) from None

from minicompress.testing.checks import check_codec, check_compressor, check_layer, check_pure
from minicompress.testing.models import models
from minicompress.testing.strategies import conv_kernels, matrices, weights

__all__ = [
    "check_codec",
    "check_compressor",
    "check_layer",
    "check_pure",
    "conv_kernels",
    "matrices",
    "models",
    "weights",
]
