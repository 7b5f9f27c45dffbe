"""Bytes: entropy coding, and the `.mcz` file of a network (`save`) or of arrays (`save_arrays`)."""

from minicompress.storage.container import dumps, load, loads, save
from minicompress.storage.entropy import range_decode, range_encode
from minicompress.storage.huffman import huffman_decode, huffman_encode
from minicompress.storage.named_arrays import (
    dumps_arrays,
    load_arrays,
    loads_arrays,
    save_arrays,
)

__all__ = [
    "dumps",
    "dumps_arrays",
    "huffman_decode",
    "huffman_encode",
    "load",
    "load_arrays",
    "loads",
    "loads_arrays",
    "range_decode",
    "range_encode",
    "save",
    "save_arrays",
]
