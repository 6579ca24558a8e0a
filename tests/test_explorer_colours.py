"""The explorer's colours as colour-blind people see them: what means different things must look different to everybody.

The simulation is that of Machado, Oliveira and Fernandes, "A Physiologically-based Model for Simulation of Color Vision
Deficiency" (2009), at its full severity; distances are those of CIELAB (CIE 1976), where about 2.3 can just be seen.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest

STATIC = Path(__file__).parent.parent / "effnet_np" / "explorer" / "static"
DRAW = (STATIC / "draw.js").read_text()
SEEN_BY = {  # linear RGB -> linear RGB
    "everybody else": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])  # sRGB, D65


def lab(colours, vision):
    """sRGB from 0 to 255 (..., 3) -> CIELAB of what is seen, (..., 3): lightness from 0 to 100, and two axes of colour."""
    c = np.asarray(colours, float) / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(SEEN_BY[vision]).T, 0, 1)
    t = seen @ TO_XYZ.T / TO_XYZ.sum(1)
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def apart(a, b, vision):
    return np.linalg.norm(lab(a, vision) - lab(b, vision), axis=-1)


def colour_map(name, count):
    """`count` colours of a map of draw.js, from its first to its last."""
    found = re.search(rf"const {name} = (\[\[.*\]\]);", DRAW)
    stops = np.array(json.loads(found[1]), float)
    places = np.linspace(0, len(stops) - 1, count)
    return np.stack([np.interp(places, range(len(stops)), stops[:, channel]) for channel in range(3)], 1)


def themes():
    """The named colours of explorer.css, light and dark: {name: (r, g, b)}."""
    style = (STATIC / "explorer.css").read_text()
    light, dark = style.split("prefers-color-scheme: dark", 1)
    return [
        {name: tuple(bytes.fromhex(digits)) for name, digits in re.findall(r"--([\w-]+): #([0-9a-f]{6})", text)}
        for text in (light, dark[: dark.index("}")])
    ]


@pytest.mark.parametrize("vision", SEEN_BY)
def test_numbers_can_be_read_from_the_maps(vision):
    rising = colour_map("RISING", 11)
    assert (np.diff(lab(rising, vision)[:, 0]) > 4).all(), "brighter is more, step for step"
    for half in np.split(colour_map("BOTH_WAYS", 22), 2):
        assert (apart(half[1:], half[:-1], vision) > 3).all()


@pytest.mark.parametrize("vision", SEEN_BY)
def test_signs_can_be_told_apart(vision):
    """A number and its negative: from a tenth of the largest on, and then ever more surely."""
    both = colour_map("BOTH_WAYS", 201)
    shares = np.array([10, 25, 50, 100])
    assert (apart(both[100 + shares], both[100 - shares], vision) > [8, 20, 30, 40]).all()


@pytest.mark.parametrize("vision", SEEN_BY)
def test_marks_and_words_can_be_told_apart(vision):
    for names in themes():
        for a, b in (("good", "bad"), ("bar", "after"), ("bar", "track"), ("after", "track"), ("mark", "ink")):
            assert apart(names[a], names[b], vision) > 15, (a, b)
    found = re.search(r"\[NOTHING, MARKED\] = .*\.of\((\d+), (\d+), (\d+), 255, (\d+), (\d+), (\d+), 255\)", DRAW)
    nothing, marked = np.array(found.groups(), float).reshape(2, 3)
    assert apart(nothing, marked, vision) > 30
    for name in ("RISING", "BOTH_WAYS"):
        for single in (nothing, marked):
            assert apart(colour_map(name, 51), single, vision).min() > 30, name
