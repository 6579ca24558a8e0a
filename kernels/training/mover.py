"""An optimiser's step by the kernels: its memories as views of flat arrays, and the table that moves all parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from effnet_np.kernels.pool import Pool
from effnet_np.kernels.record import At, layout
from effnet_np.kernels.target import BYTES, WIDTH
from effnet_np.kernels.tiling import ceil_div
from effnet_np.kernels.training.optimize import Move, Numbers, Squares, cut_registers
from effnet_np.kernels.training.state import Parameters, memory


class Mover:
    """For the parameters of those names, with optimiser `kind` (optimize.py). `memories`: two dicts of views by name."""

    def __init__(self, parameters: Parameters, names: Sequence[str], kind: int, functions: dict[str, int], threads: int):
        self.names = list(names)
        arrays = {name: parameters.arrays[name] for name in self.names}
        self._flat = [memory(parameters.learnt), memory(parameters.learnt)]
        self.memories = [parameters.views(flat, arrays) for flat in self._flat]
        registers = [ceil_div(array.size, WIDTH) for array in arrays.values()]
        cuts = [cut_registers(count) for count in registers]
        starts = np.cumsum([0, *(cut.tasks for cut in cuts)]).tolist()
        self._sums = memory(starts[-1] * BYTES)
        bases = {"state": parameters.data, "gradients": parameters.gradient, "first": self._flat[0], "second": self._flat[1]}
        addresses = {name: array.ctypes.data for name, array in (bases | {"sums": self._sums}).items()}
        nothing, moves, sums = Numbers(*[0.0] * len(Numbers._fields)), [], []
        for name, count, cut, start in zip(self.names, registers, cuts, starts, strict=False):
            at = {base: At(base, parameters.offset[name]) for base in bases}
            places = {"weight": at["state"], "gradient": at["gradients"], "first": at["first"], "second": at["second"]}
            moves.append(Move(cut=cut, kind=kind, registers=count, numbers=nothing, **places))
            sums.append(Squares(cut=cut, registers=count, gradient=at["gradients"], sums=At("sums", start * BYTES)))
        self._table = np.stack([step.words(addresses, functions, threads) for step in (*sums, *moves)])
        self._word = layout(Move)["numbers.rate"][0]
        self._pool = Pool(threads, len(self._table))

    def length(self) -> float:
        """Of all gradients as one vector; NaN or infinite where one of them has such a number."""
        self._run(0, len(self.names))
        with np.errstate(all="ignore"):
            return float(np.sqrt(self._sums.sum(dtype=np.float64)))

    def move(self, numbers: Mapping[str, Numbers]) -> None:
        """Every parameter by its numbers."""
        rows = np.array([numbers[name] for name in self.names], np.float32).view(np.int32)
        self._table[len(self.names) :, self._word : self._word + rows.shape[1]] = rows
        self._run(len(self.names), len(self._table))

    def _run(self, first: int, last: int) -> None:
        self._pool(self._table.ctypes.data, first, last, 0, 0)
