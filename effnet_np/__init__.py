"""EfficientNet written in NumPy to be read: `classify` a picture, or build, load, run and look into the network.

>>> import effnet_np
>>> effnet_np.classify("cat.jpg")[0]  # doctest: +SKIP
{'label': 'tiger cat', 'score': 0.385}
"""

from effnet_np.classify import classify
from effnet_np.config import EfficientNetConfig
from effnet_np.image_processor import EfficientNetImageProcessor
from effnet_np.model import EfficientNetForImageClassification, EfficientNetModel
from effnet_np.summary import summary


def compile(model, threads=None):
    """The same model, run by kernels compiled for this CPU: same call, same outputs. Needs `pip install effnet_np[numba]`."""
    from effnet_np.kernels.compiled import compile

    return compile(model, threads)


__all__ = [
    "EfficientNetConfig",
    "EfficientNetForImageClassification",
    "EfficientNetImageProcessor",
    "EfficientNetModel",
    "classify",
    "compile",
    "summary",
]
__version__ = "0.1.0"
