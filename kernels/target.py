"""The CPU that the kernels are made for, and the sizes that follow from its registers. Imports no Numba, so it is quick."""

from __future__ import annotations

import os

import llvmlite.binding as llvm


def _cpu() -> tuple[str, str]:
    """(name, features) as LLVM wants them: the host's, or NUMBA_CPU_NAME and NUMBA_CPU_FEATURES, read as Numba reads them."""
    name, features = os.environ.get("NUMBA_CPU_NAME"), os.environ.get("NUMBA_CPU_FEATURES")
    if features is None:
        features = llvm.get_host_cpu_features().flatten() if name is None else ""
    return (llvm.get_host_cpu_name() if name is None else name), features


CPU_NAME, CPU_FEATURES = _cpu()
TRIPLE = llvm.get_process_triple()
_present = {feature[1:] for feature in CPU_FEATURES.split(",") if feature.startswith("+")}
X86 = TRIPLE.startswith(("x86_64", "i686", "amd64"))
AVX512 = X86 and {"avx512f", "avx512dq", "avx512vl"} <= _present
WIDTH = 16 if AVX512 else 8 if "avx" in _present else 4  # float32 numbers in a register
REGISTERS = 32 if AVX512 or not X86 else 16  # AVX-512 and NEON have 32, AVX and SSE 16
BYTES = 4 * WIDTH  # of a register

# The matrix product goes through its inputs in units of this many channels, so that 24 or 40 are not rounded up to 32 or 48.
UNIT = min(8, WIDTH)
# Its tiles are up to this many registers wide,
VECTORS = 3
# and, where a register is 16 numbers wide, the last may be half a one: for the 24, 40 or 56 channels of the narrow layers.
HALVES = WIDTH == 16
