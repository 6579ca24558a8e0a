"""Checkpoints of other libraries, known by the names of their tensors: the same networks under names that are not read here."""

from __future__ import annotations

import re
from collections.abc import Collection

# (a name that each of its files has, another, what it is). A name is a regular expression for the whole of it.
KINDS = (
    (r"conv_stem\.weight", r"blocks\.\d+\.\d+\.(conv_dw|conv|conv_pw|conv_exp)\.weight", "timm or geffnet"),
    (r"features\.0\.0\.weight", r"features\.\d+\.\d+\.block\.0\.0\.weight", "torchvision"),
    (r"_conv_stem\.weight", r"_blocks\.\d+\._se_reduce\.weight", "efficientnet_pytorch (lukemelas)"),
    (r"(.*[./])?stem_conv[./].*kernel(:0)?", r"(.*[./])?block\w+_(dw|project_|expand_)conv\w*[./].*", "Keras"),
    (r"(layers|_layer_checkpoint_dependencies)[./].*vars[./]0", r"layers[./].*depthwise_conv2d[\w./]*", "Keras 3"),
)
LITE0_BLOCKS = 16


def library_of(names: Collection[str]) -> tuple[str, str] | None:
    """(the library whose EfficientNet these names of tensors are, one of the names that say so), or None."""
    for first, second, library in KINDS:
        found = [next((name for name in names if re.fullmatch(pattern, name)), "") for pattern in (first, second)]
        if all(found):
            return library, found[1]
    blocks = {match[1] for match in (re.match(r"_blocks\.(\d+)\._depthwise_conv\.", name) for name in names) if match}
    if "_conv_stem.weight" in names and len(blocks) > LITE0_BLOCKS:
        library = f"efficientnet-lite-pytorch, of {len(blocks)} blocks, where Lite0 has {LITE0_BLOCKS} (Lite1 and 2 have 21)"
        return library, f"_blocks.{len(blocks) - 1}._depthwise_conv.weight"
    return None


def refuse_foreign(names: Collection[str], where: object) -> None:
    """Raise ValueError, saying what it is and what to do, for a checkpoint of another library."""
    found = library_of(names)
    if found:
        library, example = found
        raise ValueError(
            f"{where} is a checkpoint of {library}, by its names such as {example[:80]!r}: effnet_np reads Hugging Face's "
            "EfficientNets and Lite0. Take the same network from the hub, from_pretrained('google/efficientnet-b0'), or "
            "load this one with its own library"
        )
