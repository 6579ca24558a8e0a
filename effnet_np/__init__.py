"""EfficientNet written in NumPy to be read: `classify` a picture, or build, load, run and look into the network.

>>> import effnet_np
>>> effnet_np.classify("cat.jpg")[0]  # doctest: +SKIP
{'label': 'tiger cat', 'score': 0.385}
"""

from effnet_np.classify import classify
from effnet_np.compare import compare, compare_with_torch
from effnet_np.config import EfficientNetConfig
from effnet_np.explain import class_activation_map, explain
from effnet_np.image_processor import EfficientNetImageProcessor
from effnet_np.model import EfficientNetForImageClassification, EfficientNetModel
from effnet_np.summary import summary
from effnet_np.trace import Trace


def compile(model, threads=None):
    """The same model, run by kernels compiled for this CPU: same call, same outputs; `threads` is by default all cores.

    The first call on a machine compiles the kernels, which takes some seconds (`effnet-np warmup` does it ahead, with a
    progress bar). Raises ImportError where Numba is missing: pip install 'effnet_np[numba]'.
    """
    try:
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
    "class_activation_map",
    "classify",
    "compare",
    "compare_with_torch",
    "compile",
    "explain",
    "summary",
]
__version__ = "0.1.0"
