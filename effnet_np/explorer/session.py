"""What the explorer knows while it is open: models, the last pictures, and the runs of the one on the other.

A run keeps what each part of the network was given, which is little; a part that is looked at is run again on that. So even B7
needs no more memory than a few of its maps. One computation at a time: `Session.lock`.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np

from effnet_np.explorer import pictures, terms, what_if
from effnet_np.explorer.recording import INPUT, Operation, Recording, count_parts, part_of, record_part, run_part
from effnet_np.inference.stream import FUNCTIONS, ranked
from effnet_np.kernels.backend import choose
from effnet_np.layer_specs import layer_specs
from effnet_np.ops import pieces

MOST_RUNS, MOST_PICTURES = 4, 6
MOST_PICTURE_BYTES = 64 << 20  # of the pictures' files together; the last one stays whatever it takes
MOST_RECORDED = 32 << 20  # bytes of recorded parts that stay when another is recorded


class Run:
    """One picture through one model, with or without changes: each part's input, and the answer.

    base: the run without the changes, of which everything before the first change is taken. kernels: the compiled model, or
    None; it answers for what lies behind a change, where it can.
    """

    def __init__(self, model: Any, seen: pictures.Seen, changes: list[what_if.Change], base: Run | None, kernels: Any):
        self.model, self.region, self.changes = model, seen.region, changes
        began = time.perf_counter()
        self.last = count_parts(model) - 1
        config = model.config
        sigmoid = config.problem_type == "multi_label_classification" or config.num_labels == 1
        self.function = FUNCTIONS["sigmoid" if sigmoid else "softmax"]
        self._sources: dict[int, str] = {}  # the entry that a part is given
        self._kept: dict[int, np.ndarray] = {}
        self.backend, self.parts_computed = "numpy", self.last + 1
        if base is None:
            self.pixels = seen.pixels
            self._kept[0], self._sources[0] = pictures.numbers(model, self.pixels), INPUT
            self.operations: dict[str, Operation] = {}
            self._first()
        else:
            self.pixels, self.operations = base.pixels, base.operations
            self._again(base, kernels)
        self.milliseconds = 1000 * (time.perf_counter() - began)
        if not np.isfinite(self.logits).all():
            raise ValueError("the network's output is not finite: its weights are damaged, or a change was too large")
        self.scores = self.function(self.logits)

    def _first(self) -> None:
        """All parts, once, and what is in them."""
        for part in range(self.last + 1):
            recording, output = record_part(self.model, part, self._kept[part], self._sources[part], self.function)
            operations = recording.operations
            del recording  # its arrays, before the next part makes its own
            self.operations.update(operations)
            if part < self.last:
                self._kept[part + 1], self._sources[part + 1] = output, list(operations)[-1]
            else:
                self.logits = output

    def _again(self, base: Run, kernels: Any) -> None:
        """From the first change on: in NumPy until the last one, then by the kernels."""
        self._sources = base._sources
        parts = [part_of(self.model, change.name) for change in self.changes if change.name]
        first, last = min(parts, default=self.last), max(parts, default=-1)
        if len(parts) < len(self.changes):  # the picture itself is another one
            self.pixels = what_if.change_picture(base.pixels, self.changes)
            self._kept[0], first = pictures.numbers(self.model, self.pixels), 0
        else:
            self._kept.update({part: base.given(part) for part in range(first + 1)})
        self.parts_computed = self.last + 1 - first
        logits = self._by_kernels(kernels, last) if kernels is not None and last < self.last else None
        if logits is not None:
            self.logits, self.backend = logits, "kernels"
            return
        given = self.given(self.last)
        with what_if.changed(self.model, self.changes):
            self.logits = run_part(self.model, self.last, given)

    def _by_kernels(self, kernels: Any, last: int) -> np.ndarray | None:
        """The logits from the part behind the last change on, or None where the kernels cannot answer for this model."""
        given = self.given(last + 1)
        if last < 0:
            return kernels(given, return_dict=True).logits
        try:
            return kernels.resume(last, given, *self._kept[0].shape[2:])
        except NotImplementedError:
            return None

    def given(self, part: int) -> np.ndarray:
        """What a part is given: kept, or computed now from the nearest that is."""
        before = max(number for number in self._kept if number <= part)
        with what_if.changed(self.model, self.changes):
            for number in range(before, part):
                self._kept[number + 1] = run_part(self.model, number, self._kept[number])
        return self._kept[part]

    def record(self, part: int) -> Recording:
        given = self.given(part)
        with what_if.changed(self.model, self.changes):
            return record_part(self.model, part, given, self._sources[part], self.function)[0]


def _statistics(planes: np.ndarray) -> dict[str, np.ndarray]:
    """Of some channels (n, H * W), each (n,)."""
    return {
        "mean": planes.mean(1, dtype=np.float64),
        "deviation": planes.std(1, dtype=np.float64),
        "least": planes.min(1),
        "largest": planes.max(1),
        "zeros": (planes == 0).mean(1),
        "strength": np.abs(planes).mean(1, dtype=np.float64),
    }


class Session:
    """The models by name, the pictures by key, and what was asked about them."""

    def __init__(self, models: Mapping[str, Any], max_pixels: int, kernels: bool = True):
        self.models, self.max_pixels = dict(models), max_pixels
        self.lock = threading.RLock()
        self.pictures: OrderedDict[str, pictures.Picture] = OrderedDict()
        self._kernels: dict[str, Any] = {} if kernels else dict.fromkeys(models)
        self._runs: OrderedDict[tuple[str, str, str], Run] = OrderedDict()
        self._recordings: OrderedDict[tuple, Recording] = OrderedDict()

    # -- pictures and runs ------------------------------------------------------------------------------------------

    def add_picture(self, data: bytes, name: str) -> pictures.Picture:
        """Raises ValueError, TypeError or MemoryError for what cannot be read as a picture."""
        picture = pictures.read_picture(next(iter(self.models.values())), data, name[:200], self.max_pixels)
        with self.lock:
            self.pictures[picture.key] = picture
            self.pictures.move_to_end(picture.key)
            while len(self.pictures) > MOST_PICTURES or (
                len(self.pictures) > 1 and sum(len(each.data) for each in self.pictures.values()) > MOST_PICTURE_BYTES
            ):
                self.pictures.popitem(last=False)
        return picture

    def picture(self, key: str) -> pictures.Picture:
        if key not in self.pictures:
            raise KeyError("this picture is no longer held: choose its file again")
        self.pictures.move_to_end(key)
        return self.pictures[key]

    def model(self, name: str) -> Any:
        if name not in self.models:
            raise KeyError(f"there is no model {name!r:.80} here, only {', '.join(self.models)}")
        return self.models[name]

    def kernels(self, name: str) -> Any:
        """The compiled model where the kernels are warm, and None otherwise."""
        if name not in self._kernels:
            runner, _ = choose(self.model(name), "auto")
            self._kernels[name] = runner if hasattr(runner, "resume") else None
        return self._kernels[name]

    def run(self, model: str, picture: str, changes: str = "") -> Run:
        key = (model, picture, changes)
        if key not in self._runs:
            network = self.model(model)
            parsed = what_if.parse(changes, network)
            base = self.run(model, picture) if parsed else None
            if base is not None:
                parsed = [change._replace(name=self._own_name(base, change.name)) for change in parsed]
            seen = pictures.Seen(base.pixels, base.region) if base else None
            seen = seen or pictures.see(network, self.picture(picture), self.max_pixels)
            self._runs[key] = Run(network, seen, parsed, base, self.kernels(model) if parsed else None)
            while len(self._runs) > MOST_RUNS:
                self._forget(next(iter(self._runs)))
        self._runs.move_to_end(key)
        return self._runs[key]

    def _own_name(self, run: Run, name: str) -> str:
        """The layer that computes what a module gives: a block ends with its projection's last layer."""
        if not name or name in run.operations:
            return name
        return self.recording(run, part_of(run.model, name)).alias.get(name, name)

    def _forget(self, key: tuple[str, str, str]) -> None:
        run = self._runs.pop(key)
        for known in [known for known in self._recordings if known[0] is run]:
            del self._recordings[known]

    def recording(self, run: Run, part: int) -> Recording:
        key = (run, part)
        if key not in self._recordings:
            while sum(each.nbytes for each in self._recordings.values()) > MOST_RECORDED:  # first, so that memory is free
                self._recordings.popitem(last=False)
            self._recordings[key] = run.record(part)
        self._recordings.move_to_end(key)
        return self._recordings[key]

    # -- what the page asks -----------------------------------------------------------------------------------------

    def output(self, run: Run, name: str) -> tuple[Operation, np.ndarray]:
        """The operation behind a name, and its output (C, H, W) or (C,); of the picture itself the network's input."""
        if name == INPUT:
            given = run.given(0)
            return Operation(INPUT, INPUT, 0, given.shape[1:], ()), given[0]
        recording = self.recording(run, part_of(run.model, name))
        name = recording.alias.get(name, name)
        if name not in recording.operations:
            raise KeyError(f"there is no layer {name!r:.120} in this network")
        return recording.operations[name], recording.steps[name].output[0]

    def layer(self, run: Run, name: str) -> dict[str, Any]:
        """Shape, and of each channel: mean, deviation, least, largest, share of zeros, and strength, the mean of |x|."""
        operation, output = self.output(run, name)
        planes = output.reshape(output.shape[0], -1)
        parts = [_statistics(planes[piece]) for piece in pieces(*planes.shape)]
        statistics = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        described = {"name": operation.name, "kind": operation.kind, "shape": operation.shape, "part": operation.part}
        return described | {key: value.astype(np.float32) for key, value in statistics.items()}

    def planes(self, run: Run, name: str, channels: list[int]) -> np.ndarray:
        """Those channels of an entry, (n, H, W) float32."""
        operation, output = self.output(run, name)
        if not all(0 <= channel < output.shape[0] for channel in channels):
            raise ValueError(f"{operation.name} has channels 0 to {output.shape[0] - 1}")
        return output[channels].reshape(len(channels), *(output.shape[1:] or (1, 1))).astype(np.float32, copy=False)

    def kernel(self, run: Run, name: str, channel: int) -> dict[str, Any]:
        """The weights that make a channel: of the convolution or linear layer that an entry's numbers go back to."""
        recording = self.recording(run, part_of(run.model, name))
        name = recording.alias.get(name, name)
        while name in recording.steps:
            step = recording.steps[name]
            if step.kind in ("conv2d", "linear"):
                weight = step.arguments[1]
                if not 0 <= channel < len(weight):
                    raise ValueError(f"{name} has channels 0 to {len(weight) - 1}")
                return {"name": name, "shape": weight.shape[1:], "weights": weight[channel].reshape(-1)}
            inputs = recording.operations[name].inputs
            if not inputs or len(inputs) > 1:
                break
            name = inputs[0]
        return {"name": "", "shape": (), "weights": np.zeros(0, np.float32)}

    def number(self, run: Run, name: str, at: terms.Place) -> dict[str, Any]:
        """How the number at a place was made, back to the first sum; and the pixels that it sees."""
        name = self.output(run, name)[0].name
        chain: list[dict[str, Any]] = []
        here, source = at, name
        while True:
            step = self._step(run, source, here)
            chain.append(step)
            if step["form"] not in terms.ELEMENTWISE:
                break
            source, here = step["sources"][0], tuple(step["places"][0].tolist())
        field = terms.receptive_field(run.operations, name, at[1], at[2])
        return {"name": name, "at": at, "chain": chain, "field": field}

    def _step(self, run: Run, name: str, at: terms.Place) -> dict[str, Any]:
        operation, output = self.output(run, name)
        shape = (*output.shape, 1, 1)[:3]
        if not all(0 <= place < length for place, length in zip(at, shape, strict=True)):
            raise ValueError(f"{operation.name} is {' x '.join(map(str, shape))}: it has no place {list(at)}")
        described = {"name": operation.name, "kind": operation.kind, "at": at, "value": terms.number(output[None], at)}
        described |= {"sources": operation.inputs, "shape": operation.shape}
        if name == INPUT:
            return described | self._pixel(run, at)
        step = self.recording(run, operation.part).steps[operation.name]
        return described | terms.terms_of(step, at)

    def _pixel(self, run: Run, at: terms.Place) -> dict[str, Any]:
        """A number of the network's input: the pixel that it was, and the processor's arithmetic."""
        processor, channel = run.model.image_processor, at[0]

        def of_channel(value: Any) -> float:
            return float(np.broadcast_to(np.asarray(value, np.float64), run.pixels.shape[2])[channel])

        numbers = {"rescale": processor.rescale_factor if processor.do_rescale else 1.0}
        numbers["offset"] = 1.0 if processor.do_rescale and processor.rescale_offset else 0.0
        numbers["mean"] = of_channel(processor.image_mean) if processor.do_normalize else 0.0
        numbers["std"] = of_channel(processor.image_std) if processor.do_normalize else 1.0
        numbers["divisor"] = of_channel(processor.image_std) if processor.include_top else 1.0
        return {"form": "pixel", "pixel": int(run.pixels[at[1], at[2], channel]), **numbers}

    def answer(self, run: Run, top_k: int = 5) -> dict[str, Any]:
        predictions = ranked(run.model.config, run.logits, top_k)[0]
        facts = {"milliseconds": run.milliseconds, "backend": run.backend, "parts": run.parts_computed}
        return facts | {"predictions": predictions, "scores": run.scores[0], "logits": run.logits[0]}

    def activation_map(self, run: Run, class_index: int) -> dict[str, Any]:
        """Each position's score for a class, as `class_activation_map` has it: (h, w), their mean is the logit."""
        model = run.model
        if model.config.pooling_type != "mean":
            raise ValueError("a class activation map needs global average pooling")
        if not 0 <= class_index < model.config.num_labels:
            raise ValueError(f"class must lie between 0 and {model.config.num_labels - 1}, got {class_index}")
        features = self.output(run, "efficientnet.encoder.top_activation")[1]
        weight, bias = model.classifier.weight[class_index], model.classifier.bias[class_index]
        scores = np.einsum("chw,c->hw", features, weight) + bias
        return {"height": scores.shape[0], "width": scores.shape[1], "scores": scores.reshape(-1)}

    def network(self, run: Run) -> dict[str, Any]:
        """The map: each part with its operations, shape of its output, parameters and multiply-adds."""
        model = run.model
        _, _, height, width = run.given(0).shape
        last = count_parts(model) - 1
        blocks = model.config.blocks()
        parts: list[dict[str, Any]] = []
        for part in range(last + 1):
            title = "Stem" if part == 0 else "Head" if part == last else f"Block {part - 1}"
            stage = None if part in (0, last) else blocks[part - 1].stage
            parts.append({"title": title, "stage": stage, "operations": [], "parameters": 0, "mult_adds": 0})
        for operation in run.operations.values():
            entry = {"name": operation.name, "kind": operation.kind, "shape": operation.shape, "inputs": operation.inputs}
            parts[operation.part]["operations"].append(entry | {"kernel": operation.window and operation.window[0]})
        for layer in layer_specs(model.config.architecture(), height, width):
            counted = parts[part_of(model, layer.name)]
            counted["parameters"] += layer.parameters
            counted["mult_adds"] += layer.mult_adds
        for number, drawn in enumerate(parts):  # the head as large as the convolution that it begins with
            drawn["shape"] = drawn["operations"][0 if number == last else -1]["shape"]
        return {"parts": parts, "input": (model.config.num_channels, height, width)}
