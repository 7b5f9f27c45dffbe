"""Real bytes: bit packing, Huffman and range coding, and the .mcz file."""
