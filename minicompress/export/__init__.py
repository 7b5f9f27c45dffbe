"""Out of Python, and in: C for small devices, ONNX, and the weights of other frameworks."""
