"""Out of Python and in: C, ONNX, and the state dicts of other frameworks."""

from minicompress.interchange.c import CExport, export_c
from minicompress.interchange.onnx_decoding import save_decoded_onnx
from minicompress.interchange.onnx_file import save_onnx, to_onnx
from minicompress.interchange.onnx_import import OnnxReport, from_onnx, onnx_report
from minicompress.interchange.onnx_rewriting import onnx_arrays, save_onnx_arrays
from minicompress.interchange.state_dict import from_state_dict, to_state_dict
from minicompress.interchange.tensor_files import load_tensors, save_tensors

__all__ = [
    "CExport",
    "OnnxReport",
    "export_c",
    "from_onnx",
    "from_state_dict",
    "load_tensors",
    "onnx_arrays",
    "onnx_report",
    "save_decoded_onnx",
    "save_onnx",
    "save_onnx_arrays",
    "save_tensors",
    "to_onnx",
    "to_state_dict",
]
