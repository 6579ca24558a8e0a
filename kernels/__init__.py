"""EfficientNet compiled for the CPU with Numba. Start at README.md beside this file; `compiled.py` is the way in."""
