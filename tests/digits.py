"""From scratch: a small EfficientNet learns scikit-learn's 1,797 handwritten digits, in NumPy. A script, not a test.

    pip install scikit-learn && python tests/digits.py [--seeds 0 1 2]

A stratified fifth is held out and looked at only at the end. Pictures of 8 x 8 become 24 x 24 and are moved by up to 3 pixels.
"""

import argparse
import time

import numpy as np

import effnet_np
from effnet_np.training.optimizers import AdamW, warmup_cosine
from effnet_np.training.trainer import Trainer, evaluate

EPOCHS, BATCH, SIZE, SHIFT = 30, 64, 24, 3


def network(seed):
    """53,408 parameters: three stages, 12 x 12, 6 x 6 and 3 x 3."""
    config = effnet_np.EfficientNetConfig(
        num_channels=1,
        image_size=SIZE,
        width_coefficient=0.5,
        depth_coefficient=1.0,
        kernel_sizes=[3, 3, 5],
        in_channels=[32, 16, 32],
        out_channels=[16, 32, 64],
        depthwise_padding=[],
        strides=[1, 2, 2],
        num_block_repeats=[1, 2, 2],
        expand_ratios=[1, 4, 4],
        hidden_dim=640,
        dropout_rate=0.2,
        num_labels=10,
    )
    model = effnet_np.EfficientNetForImageClassification(config, seed=seed)
    generator = np.random.default_rng(seed)
    for _, array in model.named_parameters():
        if array.ndim > 1:  # He's deviation: with the configuration's 0.02 a signal would vanish on its way
            array[...] = generator.standard_normal(array.shape, np.float32) * (2 / array[0].size) ** 0.5
    return model


def moved(pictures, generator):
    """Each picture by up to SHIFT pixels, its border extended."""
    padded = np.pad(pictures, ((0, 0), (0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)))
    places = generator.integers(0, 2 * SHIFT + 1, (len(pictures), 2))
    return np.stack([p[:, y : y + SIZE, x : x + SIZE] for p, (y, x) in zip(padded, places, strict=True)])


def learn(seed, x, labels, test):
    model, steps = network(seed), EPOCHS * (len(x) // BATCH)
    parameters = dict(model.named_parameters())
    optimizer = AdamW(parameters, 3e-3, weight_decay=0.02)
    trainer = Trainer(
        model, optimizer, warmup_cosine(3e-3, steps, 50), label_smoothing=0.1, batch_norm="learning", average=0.99, seed=seed
    )
    generator, start = np.random.default_rng(seed), time.perf_counter()
    for _ in range(EPOCHS):
        order = generator.permutation(len(x))
        for first in range(0, len(x) - BATCH + 1, BATCH):
            rows = order[first : first + BATCH]
            loss, _ = trainer.step(moved(x[rows], generator), labels[rows])
    with trainer.averaged():
        score = evaluate(model, [(test[0][i : i + 120], test[1][i : i + 120]) for i in range(0, len(test[0]), 120)])
    print(f"seed {seed}: {score.accuracy:.2%} of {len(test[1])} held-out digits, last loss {loss:.3f}, "
          f"{model.num_parameters():,} parameters, {time.perf_counter() - start:.0f} s", flush=True)  # fmt: skip


def main():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    digits = load_digits()
    images = np.kron(digits.images, np.ones((1, 3, 3)))[:, None].astype(np.float32) / 8 - 1  # (1797, 1, 24, 24), -1 to 1
    x, held, labels, answers = train_test_split(images, digits.target, test_size=0.2, stratify=digits.target, random_state=0)
    for seed in parser.parse_args().seeds:
        learn(seed, x, labels, (held, answers))


if __name__ == "__main__":
    main()
