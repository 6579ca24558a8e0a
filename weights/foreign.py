"""All dialects, and which of them a file speaks, by the names of its tensors."""

from __future__ import annotations

from collections.abc import Collection

from effnet_np.weights import hf, keras, lite, lukemelas, timm, torchvision
from effnet_np.weights.dialect import Dialect

HF, TIMM = hf.DIALECT, timm.DIALECT
# The first whose names are found is it: Lite's are those of lukemelas' package without its squeeze-excite.
DIALECTS = (
    HF,
    TIMM,
    torchvision.DIALECT,
    lukemelas.DIALECT,
    lite.DIALECT,
    keras.DIALECT_V2,
    keras.DIALECT,
)


def dialect_of(names: Collection[str]) -> Dialect | None:
    """The dialect that these names of tensors are in, None where they are in none."""
    return next((dialect for dialect in DIALECTS if dialect.sign(names)), None)
