"""Weights from and to files, and names of models to files. None of it runs code from them."""
