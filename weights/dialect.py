"""What a library's checkpoints are, in a few tables: which of our layers each of its layers is, and how its networks compute.

A dialect is data. One file beside this one holds each, and all have the same fields, so that the next is another such file.
What the words here mean: a *module* is a layer with numbers, by its dotted name; a *kind* is what a block is made of, "mbconv"
or "fused", and each "_plain" where `expand_ratio` is 1; a *place* is the name that a block has in the library.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, NamedTuple

BACKBONE = "efficientnet."
BLOCKS = BACKBONE + "encoder.blocks."
CONV, DEPTHWISE, LINEAR, NORM = "conv", "depthwise", "linear", "norm"
FEW = 12  # names that an error has room for
PARTS = {"index": r"\d{1,4}", "letter": "[a-z]"}  # of a place
SQUEEZE = ("reduce", "expand")  # of "squeeze_excite": the two convolutions that have a bias


class Network(NamedTuple):
    """One of a library's networks: our preset, the fields of the configuration that differ, and the image processor's options.

    What no tensor's shape shows is in `fields`: padding, eps, momentum.
    """

    preset: str
    fields: dict[str, Any]
    processor: dict[str, Any]


@dataclass(frozen=True)
class Block:
    """A block as names see it."""

    index: int
    stage: int
    position: int  # in its stage
    kind: str


@dataclass(frozen=True)
class Dialect:
    """`top` and, by kind, `blocks` map our modules to the library's; `outputs` the layers that it computes, where they differ.

    library: what a person calls it. signs: two patterns; each of its files has a name of a tensor that fits each, whole.
    place: where a block is, with {index}, {stage}, {number} (the stage's, from 1), {position} or {letter} (the position's); in
    `top`, {head} is the number after the last stage's.
    tensors: by the kind of a layer, our names of its tensors -> the library's. axes: by the kind of a layer, how the library's
    weight is turned into ours (NumPy's transpose). networks: by the library's own names. built_for_its_input: zeros are put
    where SAME puts them for the size that a model is built for.
    """

    library: str
    signs: tuple[str, str]
    top: Mapping[str, str]
    blocks: Mapping[str, Mapping[str, str]]
    place: str
    networks: Mapping[str, Network]
    outputs: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    tensors: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    axes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    built_for_its_input: bool = False

    # -- which -----------------------------------------------------------------------------------------------------

    def sign(self, names: Collection[str]) -> str:
        """A name among these that is this library's own, "" where they are not this library's names."""
        found = [next((name for name in names if re.fullmatch(pattern, name)), "") for pattern in self.signs]
        return found[1] if all(found) else ""

    def network(self, name: str) -> Network:
        """The network of that name; what follows its dot, as in "tf_efficientnet_b0.ap_in1k", names weights.

        Raises ValueError with the names that come closest.
        """
        found = self.networks.get(name) or self.networks.get(name.partition(".")[0])
        if found is None:
            known = [name for name in self.networks if "." not in name]
            if len(known) > FEW:
                known = get_close_matches(name[:80], known, FEW, cutoff=0.0)
            raise ValueError(f"{self.library} has no architecture {name!r:.80} that is known here, but {', '.join(known)}, ...")
        return found

    # -- names -----------------------------------------------------------------------------------------------------

    def modules(self, blocks: Iterable[Block]) -> dict[str, str]:
        """Each of our modules that holds numbers -> the library's, in the order of the forward."""
        blocks = list(blocks)
        stages = 1 + max((block.stage for block in blocks), default=0)
        ends = {ours: theirs.format(head=stages + 1) for ours, theirs in self.top.items()}
        found = {ours: theirs for ours, theirs in ends.items() if ".embeddings." in ours}
        for block in blocks:
            own = f"{BLOCKS}{block.index}."
            found |= {own + ours: self._at(block) + theirs for ours, theirs in self.blocks[block.kind].items()}
        return found | ends

    def layers(self, blocks: Iterable[Block], names: Collection[str]) -> dict[str, tuple[str, str]]:
        """Each of our layers that the library computes, too -> (its module whose input is that layer's, the one that gives it).

        `names` are the library's modules: where several could be meant, it is the first that is there.
        """
        blocks = list(blocks)
        found = {ours: (theirs, theirs) for ours, theirs in self.modules(blocks).items() if theirs in names}
        for own, place, kind in [("", "", "top")] + [(f"{BLOCKS}{b.index}", self._at(b), b.kind) for b in blocks]:
            for ours, choices in self.outputs.get(kind, {}).items():
                name = f"{own}.{ours}" if own and ours else own or ours
                there = [f"{place}{choice}".rstrip("._") for choice in choices if f"{place}{choice}".rstrip("._") in names]
                if there:
                    found[name] = (found.get(name, (there[0],))[0], there[0])
                else:
                    found.pop(name, None)
        gates = {
            name.rpartition(".")[0] for name in found if name.endswith("squeeze_excite.reduce")
        }  # timm has empty ones, too
        return {name: pair for name, pair in found.items() if "squeeze_excite" not in name or _gate(name) in gates}

    def blocks_in(self, modules: Collection[str]) -> list[Block]:
        """The blocks that these names of the library's modules have, in order."""
        pattern = re.sub(
            r"\\\{(\w+)\\\}", lambda word: f"(?P<{word[1]}>{PARTS.get(word[1], PARTS['index'])})", re.escape(self.place)
        )
        tails: dict[tuple[int, ...], set[str]] = {}
        for at, name in ((re.match(pattern, name), name) for name in modules):
            if at:
                place = tuple(int(part) if part.isdecimal() else ord(part) - ord("a") for part in at.groups())
                tails.setdefault(place, set()).add(name[at.end() :])
        blocks: list[Block] = []
        for place, own in sorted(tails.items()):
            kind = max(self.blocks, key=lambda kind: self._likeness(kind, own))
            if self._likeness(kind, own)[1]:
                stage = place[0] - ("{number}" in self.place) if len(place) > 1 else 0
                blocks.append(Block(len(blocks), stage, place[-1], kind))
        return blocks

    def _likeness(self, kind: str, own: Collection[str]) -> tuple[bool, int]:
        """(whether all of such a block is there, how much of it is). Squeeze-excite is left out: not all networks have it."""
        parts = {theirs for ours, theirs in self.blocks[kind].items() if not ours.startswith("squeeze_excite")}
        return parts <= set(own), len(parts & set(own))

    def _at(self, block: Block) -> str:
        letter = chr(ord("a") + block.position)
        return self.place.format(
            index=block.index, stage=block.stage, number=block.stage + 1, position=block.position, letter=letter
        )

    def tensor_names(self, modules: Mapping[str, str]) -> dict[str, str]:
        """Our tensors -> the library's, for these modules."""
        found = {}
        for ours, theirs in modules.items():
            kind = kind_of(ours)
            for tensor, name in (self.tensors or TORCH)[kind].items():
                if tensor != "bias" or kind in (NORM, LINEAR) or ours.rpartition(".")[2] in SQUEEZE:
                    found[f"{ours}.{tensor}"] = f"{theirs}.{name}"
        return found

    def renamed(self, names: Collection[str]) -> dict[str, str]:
        """Our names of these tensors -> the names as they are; a tensor that is not known here keeps its name."""
        blocks = self.blocks_in({name.rpartition(".")[0] for name in names})
        known = {theirs: ours for ours, theirs in self.tensor_names(self.modules(blocks)).items() if theirs in names}
        return {known.get(name, name): name for name in names}

    def transposition(self, name: str) -> tuple[int, ...] | None:
        """How the library's array is turned into our tensor of that name, None where both are alike."""
        module, _, tensor = name.rpartition(".")
        return self.axes.get(kind_of(module)) if tensor == "weight" else None


def _gate(name: str) -> str:
    return name.partition("squeeze_excite")[0] + "squeeze_excite"


TORCH = {
    CONV: {"weight": "weight", "bias": "bias"},
    DEPTHWISE: {"weight": "weight", "bias": "bias"},
    LINEAR: {"weight": "weight", "bias": "bias"},
    NORM: {name: name for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")},
}


def kind_of(module: str) -> str:
    """What a module of ours is, by its name."""
    last = module.rpartition(".")[2]
    if last == "classifier":
        return LINEAR
    if last.endswith(("norm", "_bn")):
        return NORM
    return DEPTHWISE if last == "depthwise_conv" else CONV


def blocks_of(network: Any) -> Iterator[Block]:
    """The blocks of an `Architecture`."""
    position = 0
    for before, spec in zip([None, *network.blocks], network.blocks, strict=False):
        position = position + 1 if before is not None and before.stage == spec.stage else 0
        kind = ("fused" if spec.fused else "mbconv") + ("_plain" if spec.expand_ratio == 1 else "")
        yield Block(spec.index, spec.stage, position, kind)
