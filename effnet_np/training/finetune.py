"""finetune(): a folder of photographs in, a network that knows their classes out."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from effnet_np import ops
from effnet_np.checkpoints.files import read_json, write_json
from effnet_np.checkpoints.h5_writer import tensors_sha256
from effnet_np.hf_config import EfficientNetConfig
from effnet_np.images.io import MAX_PIXELS, load_image
from effnet_np.inference.classify import get_model
from effnet_np.model import EfficientNetForImageClassification
from effnet_np.training import gradients
from effnet_np.training.augment import augment, input_size, without_geometry
from effnet_np.training.curves import draw_history
from effnet_np.training.folder import Dataset, read_folder
from effnet_np.training.optimizers import OPTIMIZERS, AdamW, Schedule, constant, warmup_cosine, warmup_staircase
from effnet_np.training.run import Run, in_batches, interruptible
from effnet_np.training.settings import Settings, Watcher
from effnet_np.training.trainer import Score, Trainer, trainable


@dataclass
class Finetuned:
    """What a run gives: the best model in eval mode, with its image processor, and how it came about."""

    model: EfficientNetForImageClassification
    accuracy: float  # the best on the validation pictures
    history: dict[str, Any]  # what history.json holds
    dataset: Dataset
    output: Path | None


def finetune(
    folder: str | os.PathLike,
    model: str | os.PathLike | EfficientNetForImageClassification = "lite0",
    output: str | os.PathLike | None = None,
    *,
    resume: bool = False,
    threads: int = 2,
    max_pixels: int = MAX_PIXELS,
    watcher: Watcher | None = None,
    architecture: str | None = None,
    **settings: Any,
) -> Finetuned:
    """Teach a model the classes of a folder of photographs: a folder a class, or `train/` and `val/` of such.

    model: "lite0", "b0".."b7", a hub id, a folder or file, or a model with its image_processor; it is not changed. output: a
    new folder for the model, history.json and curves.png, written whole or not at all; `classify(model=output)` takes it, and
    transformers loads it where it has that network. Meanwhile the state is in `<output>.unfinished`, and resume=True goes on
    from there to the same bits. threads: that read and augment pictures ahead of the network. architecture: another library's
    name for the network, where its file does not say it. settings: see `Settings`.
    Raises FileExistsError, FileNotFoundError, TypeError or ValueError before anything is learnt, FloatingPointError where
    learning diverges before there is anything to keep. Ctrl-C ends it after the step, and the best is kept.
    """
    chosen, watcher = Settings(**settings), watcher or Watcher()
    output = None if output is None else Path(output)
    _check_output(output, resume)
    base = get_model(model, **({"architecture": architecture} if architecture else {}))
    if not isinstance(base, EfficientNetForImageClassification):
        raise TypeError(f"a model in NumPy can learn, a {type(base).__name__} cannot: pass the one that it was made from")
    dataset = read_folder(folder, chosen.split, chosen.seed, base.config.num_channels, max_pixels, threads)
    watcher.say(str(dataset))
    network = with_classes(base, dataset.classes, chosen.seed)
    names = trainable(network, chosen.train)
    unfinished = None if output is None else output.with_name(f"{output.name}.unfinished")
    runner, backend, by_kernels = _computed_by(network, chosen.backend, unfinished if resume else None)
    description = dataclasses.asdict(chosen) | {"backend": backend, "learns_by_kernels": by_kernels, "classes": dataset.classes}
    description |= {"weights": tensors_sha256(base.state_dict()), "pictures": dataset.fingerprint()}
    run = Run(unfinished, description, watcher)
    state = run.begin(resume)
    pictures = Pictures(network, dataset, chosen, threads, max_pixels)
    with interruptible() as asked_to_stop:
        if run.place["stage"] == "head":
            learn_head(run, chosen, pictures, runner, state, asked_to_stop)
            state = {}
        if chosen.train != "head" and not run.stopped:
            learn_body(run, chosen, pictures, _learner(network, by_kernels), names, state, asked_to_stop)
    if run.best is None:
        raise FloatingPointError(f"{run.stopped}: there is nothing to keep")
    network.load_state_dict(run.best_weights, strict=False)
    network.eval()
    if run.stopped:
        watcher.say(f"stopped: {run.stopped}; the best so far is kept")
    history = _history(run, chosen, dataset, pictures)
    if output is not None:
        run.write(output, partial(_fill, network, history))
    return Finetuned(network, run.best["val_accuracy"], history, dataset, output)


def _check_output(output: Path | None, resume: bool) -> None:
    if output is None:
        if resume:
            raise ValueError("resume=True needs output, the folder that the run was to fill")
        return
    unfinished = output.with_name(f"{output.name}.unfinished")
    if output.exists() and not (resume and unfinished.exists()):
        raise FileExistsError(f"{output} exists: choose another name, or remove it")


def with_classes(base: EfficientNetForImageClassification, classes: list[str], seed: int) -> EfficientNetForImageClassification:
    """A copy of a model with these classes; its classifier is fresh unless they are the model's own already."""
    labels = dict(enumerate(classes))
    fields = base.config.to_dict() | {"id2label": labels, "label2id": {name: index for index, name in labels.items()}}
    config = EfficientNetConfig.from_dict({key: value for key, value in fields.items() if key != "num_labels"})
    config.problem_type = "single_label_classification"
    model = EfficientNetForImageClassification(config, seed)
    same = base.config.id2label == labels
    state = {name: array for name, array in base.state_dict().items() if same or not name.startswith("classifier.")}
    model.load_state_dict(state, strict=False)
    model.image_processor = base.image_processor
    return model


def _computed_by(model: EfficientNetForImageClassification, backend: str, unfinished: Path | None) -> tuple[Any, str, bool]:
    """(what computes the features, its name, whether kernels teach the body); a run that goes on keeps what it began with."""
    from effnet_np.kernels.backend import choose, learns

    by_kernels = learns(model, backend)
    if backend == "auto" and unfinished is not None and (unfinished / "run.json").exists():
        earlier = read_json(unfinished / "run.json")
        backend, by_kernels = earlier.get("backend", backend), earlier.get("learns_by_kernels", by_kernels)
    runner, _ = choose(model.efficientnet, backend)
    return runner, "numpy" if runner is model.efficientnet else "numba", by_kernels


def _learner(model: EfficientNetForImageClassification, by_kernels: bool) -> Any:
    """What the body learns as: the model, or a copy that kernels teach."""
    if not by_kernels:
        return model
    from effnet_np.training.compiled import CompiledForTraining

    return CompiledForTraining(model)


class Pictures:
    """A data set as network input: `batches` augmented for an epoch, or as they are."""

    def __init__(self, model: Any, dataset: Dataset, settings: Settings, threads: int, max_pixels: int):
        self.processor, self.channels, self.max_pixels = model.image_processor, model.config.num_channels, max_pixels
        self.size, self.numbers = input_size(self.processor), without_geometry(self.processor)
        self.settings, self.threads, self.dataset = settings, threads, dataset
        self.train, self.val = dataset.train, dataset.val
        self.train_labels, self.val_labels = (np.array([label for _, label in part]) for part in (self.train, self.val))

    def as_they_are(self, which: str, size: int):
        """(pixel_values, labels) of "train" or "val", in order, as `classify` would see them."""
        examples = getattr(self, which)

        def load(index: int) -> np.ndarray:
            pixels = load_image(examples[index][0], self.channels, self.max_pixels)
            return self.processor([pixels], input_data_format="channels_last")["pixel_values"][0]

        return in_batches(range(len(examples)), size, load, getattr(self, f"{which}_labels"), self.threads)

    def epoch(self, epoch: int, first: int = 0):
        """(pixel_values, labels) in this epoch's order, each picture augmented by its own generator, from batch `first` on."""
        settings = self.settings
        order = np.random.default_rng((settings.seed, 1, epoch)).permutation(len(self.train)).tolist()

        def load(index: int) -> np.ndarray:
            pixels = load_image(self.train[index][0], self.channels, self.max_pixels)
            if not settings.augment:
                return self.processor([pixels], input_data_format="channels_last")["pixel_values"][0]
            generator = np.random.default_rng((settings.seed, 2, epoch, index))
            pixels = augment(pixels, self.size, self.processor.resample, generator)
            return self.numbers([pixels], input_data_format="channels_last")["pixel_values"][0]

        return in_batches(order, settings.batch_size, load, self.train_labels, self.threads, first)


def learn_head(run: Run, settings: Settings, pictures: Pictures, runner: Any, state: dict, asked_to_stop: Callable) -> None:
    """The classifier alone: a softmax regression on features, which a frozen body gives the same for each picture always.

    The features are standardised (mean 0, deviation 1 over the training pictures) so that one learning rate suits all; the
    weights that are kept undo it: W x' + b with x' = (x - mean) / deviation is (W / deviation) x + b - (W / deviation) mean.
    """
    train, val = (run.keep(f"features_{part}", partial(_features, run, pictures, runner, part)) for part in ("train", "val"))
    mean, deviation = train.mean(axis=0), train.std(axis=0) + np.float32(1e-5)
    train, val, labels = (train - mean) / deviation, (val - mean) / deviation, pictures.train_labels
    head = {
        "classifier.weight": state.get("classifier.weight", np.zeros((len(pictures.dataset.classes), len(mean)), np.float32)),
        "classifier.bias": state.get("classifier.bias", np.zeros(len(pictures.dataset.classes), np.float32)),
    }
    weight, bias = head.values()
    optimizer = AdamW(head, settings.learning_rate, weight_decay=settings.weight_decay)
    if state:
        optimizer.load_state_dict(
            {name.removeprefix("optimizer:"): a for name, a in state.items() if name.startswith("optimizer:")}
        )
    size = min(settings.batch_size, len(train))
    schedule = warmup_cosine(settings.learning_rate, settings.head_epochs * -(-len(train) // size))

    def folded() -> dict[str, np.ndarray]:
        return {"classifier.weight": weight / deviation, "classifier.bias": bias - weight @ (mean / deviation)}

    for epoch in range(run.place["epoch"], settings.head_epochs):
        order = np.random.default_rng((settings.seed, 0, epoch)).permutation(len(train))
        for first in range(0, len(train), size):
            rows = order[first : first + size]
            logits = ops.linear(train[rows], weight, bias)
            loss = ops.cross_entropy(logits, labels[rows], label_smoothing=settings.label_smoothing)
            dlogits = gradients.cross_entropy(loss.dtype.type(1), logits, labels[rows], -100, settings.label_smoothing)
            _, dweight, dbias = gradients.linear(dlogits, train[rows], weight, bias, needs=(False, True, True))
            rate = schedule(optimizer.steps)
            try:
                optimizer.step({"classifier.weight": dweight, "classifier.bias": dbias}, rate)
            except FloatingPointError as error:
                run.stopped = str(error)
                return
            run.count(float(loss), int((logits.argmax(axis=1) == labels[rows]).sum()), len(rows))
        logits = ops.linear(val, weight, bias)
        right = logits.argmax(axis=1)
        score = Score(
            float(ops.cross_entropy(logits, pictures.val_labels)), float((right == pictures.val_labels).mean()), right
        )
        run.end_epoch(len(train), rate, score, folded)
        run.watcher.step("head", epoch + 1, settings.head_epochs, run.history[-1]["train_loss"], score.accuracy)
        memory = {f"optimizer:{name}": array for name, array in optimizer.state_dict().items()}
        run.save(head | memory, always=epoch + 1 == settings.head_epochs)
        if asked_to_stop():
            run.stopped = "interrupted"
            run.save(head | memory)
            return
    if settings.train != "head":
        run.go_to("body")
        run.save({})


def _features(run: Run, pictures: Pictures, runner: Any, which: str) -> np.ndarray:
    """The pooled features of every picture of a part, (pictures, hidden_dim)."""
    done, features = 0, []
    for pixel_values, _ in pictures.as_they_are(which, 8):
        features.append(runner(pixel_values, return_dict=True).pooler_output)
        done += len(pixel_values)
        run.watcher.step(f"features of {which}", done, len(getattr(pictures, which)))
    return np.concatenate(features)


def learn_body(
    run: Run, settings: Settings, pictures: Pictures, learner: Any, names: list[str], state: dict, asked_to_stop: Callable
) -> None:
    """The head's best, and the blocks below it together, on augmented pictures; judged after each epoch."""
    learner.load_state_dict(run.best_weights, strict=False)  # where the head got to
    run.best_weights = {name: array.copy() for name, array in learner.state_dict().items()}  # the body's too, which will change
    trainer = make_trainer(learner, settings, names, len(pictures.train))
    if state:
        trainer.load_state_dict(state)
    steps = -(-len(pictures.train) // settings.batch_size)
    for epoch in range(run.place["epoch"], settings.epochs):
        for pixel_values, labels in pictures.epoch(epoch, run.place["step"]):
            if settings.batch_norm == "learning" and len(labels) == 1:
                continue  # one picture has no statistics
            try:
                loss, right = trainer.step(pixel_values, labels)
            except FloatingPointError as error:
                run.stopped = f"{error} (epoch {epoch + 1}, learning rate {trainer.rate():.2g})"
                return
            run.count(loss, right, len(labels))
            place = run.place
            seen = min(place["step"] * settings.batch_size, len(pictures.train))
            title = f"epoch {epoch + 1} of {settings.epochs}"
            run.watcher.step(
                title, epoch * steps + place["step"], steps * settings.epochs, place["loss"] / seen, place["right"] / seen
            )
            run.save(trainer.state_dict(), always=asked_to_stop())
            if asked_to_stop():
                run.stopped = "interrupted"
                return
        score = trainer.evaluate(pictures.as_they_are("val", settings.batch_size))
        with trainer.averaged():
            run.end_epoch(len(pictures.train), trainer.rate(), score, learner.state_dict)
        entry = run.history[-1]
        run.watcher.say(
            f"epoch {epoch + 1}: loss {entry['train_loss']:.3f}, accuracy {entry['train_accuracy']:.1%}; "
            f"judged: loss {score.loss:.3f}, accuracy {score.accuracy:.1%}"
        )
        run.save(trainer.state_dict())


def make_trainer(model: Any, settings: Settings, names: list[str], pictures: int) -> Trainer:
    parameters = {name: array for name, array in model.named_parameters() if name in set(names)}
    options = {"sgd": {"momentum": 0.9, "nesterov": True}}.get(settings.optimizer, {})
    body = {"efficientnet.*": settings.body_scale} if any(name.startswith("efficientnet.") for name in names) else {}
    rate, decay = settings.learning_rate, settings.weight_decay
    optimizer = OPTIMIZERS[settings.optimizer](parameters, rate, weight_decay=decay, scales=body, **options)
    steps = -(-pictures // settings.batch_size)
    schedules: dict[str, Schedule] = {
        "cosine": warmup_cosine(rate, settings.epochs * steps, steps),
        "staircase": warmup_staircase(rate, steps, steps),
        "constant": constant(rate),
    }
    return Trainer(
        model,
        optimizer,
        schedules[settings.schedule],
        label_smoothing=settings.label_smoothing,
        max_norm=settings.max_norm,
        batch_norm=settings.batch_norm,
        stochastic_depth=settings.stochastic_depth,
        average=settings.average or None,
        seed=settings.seed,
    )


# -- what is written --------------------------------------------------------------------------------------------------


def _history(run: Run, settings: Settings, dataset: Dataset, pictures: Pictures) -> dict[str, Any]:
    count = len(dataset.classes)
    confusions = np.zeros((count, count), int)
    np.add.at(confusions, (pictures.val_labels, run.predictions), 1)
    return {
        "settings": dataclasses.asdict(settings),
        "classes": dataset.classes,
        "pictures": {"train": len(dataset.train), "val": len(dataset.val)},
        "refused": [[str(Path(path).relative_to(dataset.folder)), reason] for path, reason in dataset.refused],
        "epochs": run.history,
        "best": run.best,
        "confusions": confusions.tolist(),  # a row the right class, a column the answer
        "stopped": run.stopped,
    }


def _fill(model: EfficientNetForImageClassification, history: dict[str, Any], folder: Path) -> None:
    model.save_pretrained(folder)
    write_json(folder, "history.json", history)
    draw_history(history).save(folder / "curves.png", "PNG")
