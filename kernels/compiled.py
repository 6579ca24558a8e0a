"""Compiled."""

from __future__ import annotations

import os

import numpy as np

from effnet_np.kernels import table
from effnet_np.kernels.plan import ALIGN, Planner, Weights
from effnet_np.kernels.pool import Pool
from effnet_np.kernels.simd import WIDTH
from effnet_np.model import BaseModelOutput, EfficientNetForImageClassification, ImageClassifierOutput, classification_loss

def compile(model, threads=None):
    return CompiledEfficientNet(model, threads)


class CompiledEfficientNet:
    def __init__(self, model, threads=None):
        self.config = model.config
        self.image_processor = model.image_processor
        self.classifies = isinstance(model, EfficientNetForImageClassification)
        self.threads = threads or len(os.sched_getaffinity(0))
        self.weights = Weights(model.state_dict(), model.config)
        self.plans = {}
        self.arena = self.scratch = np.zeros(0, np.float32)
        self.pool = Pool(self.threads)

    def plan(self, height, width, hidden):
        key = height, width, hidden
        if key not in self.plans:
            plan = Planner(self.config, self.weights, height, width, hidden, not self.classifies).plan
            self.plans[key] = [plan, None, 0]
        entry = self.plans[key]
        plan = entry[0]
        if self.arena.nbytes < plan.arena_bytes + ALIGN:
            self.arena = np.zeros(plan.arena_bytes // 4 + ALIGN, np.float32)
        if self.scratch.nbytes < plan.scratch_bytes * self.threads + ALIGN:
            self.scratch = np.zeros(plan.scratch_bytes * self.threads // 4 + ALIGN, np.float32)
        arena = -(-self.arena.ctypes.data // ALIGN) * ALIGN
        if entry[2] != arena:
            entry[1], entry[2] = plan.bind(arena, self.weights.address, self.threads), arena
        return plan, entry[1]

    def read(self, offset, channels, pixels):
        blocks = -(-channels // WIDTH)
        start = (-(-self.arena.ctypes.data // ALIGN) * ALIGN - self.arena.ctypes.data + offset) // 4
        data = self.arena[start : start + blocks * pixels * WIDTH].reshape(blocks, pixels, WIDTH)
        return data.transpose(0, 2, 1).reshape(-1, pixels)[:channels]

    def __call__(self, pixel_values, labels=None, output_hidden_states=None, return_dict=None):
        config = self.config
        hidden = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        return_dict = config.use_return_dict if return_dict is None else return_dict
        x = np.ascontiguousarray(pixel_values, np.float32)
        n = len(x)
        plan, rows = self.plan(x.shape[2], x.shape[3], bool(hidden))
        scratch = -(-self.scratch.ctypes.data // ALIGN) * ALIGN
        outs = []
        for i in range(n):
            rows[0, table.SOURCE] = x[i].ctypes.data
            self.pool(rows.ctypes.data, 0, len(rows), len(rows), scratch, plan.scratch_bytes)
            maps = tuple(self.read(m.offset, m.channels, m.pixels).reshape(m.channels, m.height, m.width) for m in plan.hidden)
            if maps and self.weights.inner != 1:
                maps = (maps[0] * np.float32(1 / self.weights.inner), *maps[1:])
            if self.classifies:
                outs.append((maps, self.read(plan.logits, config.num_labels, 1)[:, 0].copy()))
            else:
                m = plan.last
                outs.append((maps, self.read(plan.pooled, config.head_channels, 1)[:, 0].copy(),
                             self.read(m.offset, m.channels, m.pixels).reshape(m.channels, m.height, m.width)))
        hidden_states = tuple(np.stack(ms) for ms in zip(*[o[0] for o in outs])) if hidden else None
        if self.classifies:
            logits = np.stack([o[1] for o in outs])
            loss = None if labels is None else classification_loss(config, logits, np.asarray(labels))
            output = ImageClassifierOutput(loss, logits, hidden_states)
        else:
            output = BaseModelOutput(np.stack([o[2] for o in outs]), np.stack([o[1] for o in outs]), hidden_states)
        return output if return_dict else output.to_tuple()
