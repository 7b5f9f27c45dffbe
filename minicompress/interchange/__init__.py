"""Out of Python and in: C, ONNX, and the state dicts of other frameworks."""

from minicompress.interchange.c import CExport, export_c
from minicompress.interchange.onnx_file import save_onnx, to_onnx
from minicompress.interchange.state_dict import from_state_dict, to_state_dict

__all__ = [
    "CExport",
    "export_c",
    "from_state_dict",
    "save_onnx",
    "to_onnx",
    "to_state_dict",
]
