"""Property tests for compressors, layers and codecs: for this library, and for other people's."""
