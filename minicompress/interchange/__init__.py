"""Out of Python and in: C, ONNX, and the state dicts of other frameworks."""

from minicompress.interchange.c import CExport, export_c
from minicompress.interchange.onnx_file import save_onnx, to_onnx
from minicompress.interchange.onnx_import import OnnxReport, from_onnx, onnx_report
from minicompress.interchange.state_dict import from_state_dict, to_state_dict

__all__ = [
    "CExport",
    "OnnxReport",
    "export_c",
    "from_onnx",
    "from_state_dict",
    "onnx_report",
    "save_onnx",
    "to_onnx",
    "to_state_dict",
]
