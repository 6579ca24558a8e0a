"""Where weights come from: exporters, the manifest of known checkpoints, and ImageNet's labels."""
