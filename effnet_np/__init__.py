"""EfficientNet in NumPy."""
from effnet_np.config import EfficientNetConfig
from effnet_np.model import EfficientNetForImageClassification, EfficientNetModel
