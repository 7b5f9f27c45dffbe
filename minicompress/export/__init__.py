"""Out of Python: networks as C for small devices, and as ONNX for other runtimes."""
