"""How a convolution is computed fast: windows, direct products, Winograd's form."""
