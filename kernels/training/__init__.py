"""Training compiled: forward with batch statistics, and the way back. Start at README.md beside this file."""
