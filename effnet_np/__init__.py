"""EfficientNet written in NumPy to be read: `classify` a picture, or build, load, run and look into the network.

>>> import effnet_np
>>> effnet_np.classify("cat.jpg")[0]  # doctest: +SKIP
{'label': 'tiger cat', 'index': 282, 'score': 0.385...}
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not Path(__file__).with_name("kernels").exists():
    # A clone that Python imports as it stands: kernels/ and weights/ are beside this folder, and inside of it once installed.
    __path__.append(str(Path(__file__).resolve().parent.parent))

from effnet_np.hf_config import EfficientNetConfig
from effnet_np.images.processor import EfficientNetImageProcessor
from effnet_np.inference.classify import classify
from effnet_np.inference.models import models
from effnet_np.model import EfficientNetForImageClassification, EfficientNetModel
from effnet_np.version import __version__

if TYPE_CHECKING:
    from effnet_np.inference.evaluate import evaluate
    from effnet_np.inspection.compare import compare
    from effnet_np.inspection.explain import class_activation_map, explain
    from effnet_np.inspection.summary import summary
    from effnet_np.inspection.with_torch import compare_with_torch
    from effnet_np.tracing.trace import Trace
    from effnet_np.training.backward import backward
    from effnet_np.training.finetune import finetune

# What looks inside and what learns is imported when it is first asked for: who only classifies does not wait for it.
_LATER = {
    "Trace": "tracing.trace",
    "backward": "training.backward",
    "class_activation_map": "inspection.explain",
    "compare": "inspection.compare",
    "compare_with_torch": "inspection.with_torch",
    "evaluate": "inference.evaluate",
    "explain": "inspection.explain",
    "finetune": "training.finetune",
    "summary": "inspection.summary",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'effnet_np' has no attribute {name!r}")
    value = getattr(import_module(f"effnet_np.{_LATER[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def compile(model, threads=None, training=False):
    """The same model, run by kernels compiled for this CPU: same call, same outputs; `threads` is by default all cores.

    training=True: a copy that learns, with `backward(...)` as `effnet_np.backward` has it (training/compiled.py).
    The first call on a machine compiles the kernels, which takes some seconds (`effnet-np warmup` does it ahead, with a
    progress bar). Raises ImportError where Numba is missing: pip install 'effnet_np[numba]'.
    """
    try:
        if training:
            from effnet_np.training.compiled import CompiledForTraining

            return CompiledForTraining(model, threads)
        from effnet_np.kernels.compiled import CompiledEfficientNet
    except ImportError as error:
        raise ImportError(f"effnet_np.compile needs Numba ({error}): pip install 'effnet_np[numba]'") from error
    return CompiledEfficientNet(model, threads)


__all__ = [
    "EfficientNetConfig",
    "EfficientNetForImageClassification",
    "EfficientNetImageProcessor",
    "EfficientNetModel",
    "Trace",
    "__version__",
    "backward",
    "class_activation_map",
    "classify",
    "compare",
    "compare_with_torch",
    "compile",
    "evaluate",
    "explain",
    "finetune",
    "models",
    "summary",
]
