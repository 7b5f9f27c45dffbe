"""Bytes: entropy coding, and the `.mcz` file that `save` writes and `load` reads."""

from minicompress.storage.container import dumps, load, loads, save
from minicompress.storage.entropy import range_decode, range_encode
from minicompress.storage.huffman import huffman_decode, huffman_encode

__all__ = [
    "dumps",
    "huffman_decode",
    "huffman_encode",
    "load",
    "loads",
    "range_decode",
    "range_encode",
    "save",
]
