"""A picture made small, for a page that shows many."""

from __future__ import annotations

import io
from typing import Any

from effnet_np.images.io import MAX_PIXELS, load_image


def thumbnail(source: Any, size: int = 96, max_pixels: int = MAX_PIXELS) -> bytes:
    """A JPEG file of the picture, its longer side `size` pixels. What `load_image` takes, and raises."""
    import PIL.Image

    image = PIL.Image.fromarray(load_image(source, 3, max_pixels))
    image.thumbnail((size, size))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return file.getvalue()
