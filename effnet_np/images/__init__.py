"""Pictures of any kind to pixels, and pixels to network input."""
