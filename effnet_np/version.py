"""The version of effnet_np, in a file of its own: whatever writes it into files reads it without importing the rest."""

__version__ = "0.1.0"
