"""minidl: deep learning from scratch, to read in an afternoon and to use on Monday.

Start reading at tensor.py. `import minidl` needs NumPy only; everything optional is imported when it is used.
"""

from . import checkpoint, data, explain, functional, init, metrics, models, nn, onnx, optim, train
from .backends import (
    explain_conv,
    get_num_threads,
    set_conv_algorithm,
    set_matmul_precision,
    set_num_threads,
    show_backends,
    use_backend,
)
from .functional import concatenate, stack, where
from .graph import draw, summary, to_dot
from .init import default_rng, manual_seed
from .tensor import Tensor, detect_anomaly, enable_grad, from_dlpack, is_grad_enabled, no_grad

__all__ = [
    "Tensor", "checkpoint", "concatenate", "data", "default_rng", "detect_anomaly", "draw", "enable_grad", "explain",
    "explain_conv", "from_dlpack", "functional", "get_num_threads", "init", "is_grad_enabled", "manual_seed", "metrics",
    "models", "nn", "no_grad", "onnx", "optim", "set_conv_algorithm", "set_matmul_precision", "set_num_threads",
    "show_backends", "stack", "summary", "to_dot", "train", "use_backend", "where",
]  # fmt: skip
__version__ = "0.1.0"
