"""The proof of each compressor's bound, and what rounding adds to it."""
