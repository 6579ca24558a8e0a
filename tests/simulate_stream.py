"""How many pictures a second would it be on more cores, and on more machines? A simulation, held to a run on these.

    python tests/simulate_stream.py FOLDER [--pictures 400] [--cores 2 8 16 64] [--machines 1 10 100]

measures what each picture in FOLDER takes on one thread (decoding and preprocessing; the network; Python's own steps, which one
thread at a time can take), simulates the stream with those times picture by picture (threads, lanes, the window, results in
order), compares the simulated rate of this machine with a real run, and simulates machines that are not here. For many of them
it hands out shards of pictures to machines of uneven speed, of which some die and whose shard is done again.
"""

import argparse
import heapq
import os
import random
import statistics
import time
from pathlib import Path

import numpy as np

import effnet_np
from effnet_np.inference.classify import get_runner
from effnet_np.inference.stream import LARGEST_WINDOW, WINDOW, preprocess, stream


def measure(names):
    """Seconds: [(preparing, network) of each picture], and Python's own of one picture."""
    runner, times = get_runner("lite0", "numba", 1), []
    for _ in range(2):  # the first one warms up
        times = []
        for first in range(0, len(names), 8):  # as a stream's threads do it: some pictures, then the network for them all
            inputs, clock = [], [time.thread_time()]
            for name in names[first : first + 8]:
                inputs.append(preprocess(runner, name))
                clock.append(time.thread_time())
            runner.of_each(inputs)
            network = (time.thread_time() - clock[-1]) / len(inputs)
            times += [(float(preparing), network) for preparing in np.diff(clock)]
    tiny = effnet_np.EfficientNetForImageClassification(effnet_np.EfficientNetConfig.preset("b0", image_size=32), seed=0)
    tiny.image_processor = effnet_np.EfficientNetImageProcessor(do_resize=False)
    pixels, began = np.zeros((1, 1, 3), np.uint8), time.process_time()
    for _ in stream(tiny, (pixels for _ in range(2000)), "pixel_values", threads=1):
        pass
    return times, (time.process_time() - began) / 2000


def simulate(times, own, cores, count=20_000, seed=0):
    """Pictures a second: `cores` threads, each does one picture after the other; of `own` seconds one thread at a time."""
    chance, window = random.Random(seed), min(WINDOW * cores, LARGEST_WINDOW)
    threads, lock_free, begun, first = [(0.0, thread) for thread in range(cores)], 0.0, 0, 0
    done = [None] * count  # when each was done
    heapq.heapify(threads)
    while begun < count:
        now, thread = heapq.heappop(threads)
        while first < begun and done[first] <= now:
            first += 1
        if begun - first >= window:  # no further ahead: until the oldest is done
            heapq.heappush(threads, (done[first], thread))
            continue
        lock_free = max(lock_free, now) + own
        done[begun] = lock_free + sum(chance.choice(times))
        heapq.heappush(threads, (done[begun], thread))
        begun += 1
    return count / max(done)


def many(rate, machines, pictures, shard=100_000, life=1000.0, seed=0):
    """Hours: machines of +-10% speed take shards; each dies once in `life` hours on average, and its shard is done again."""
    chance, left = random.Random(seed), -(-pictures // shard)
    free = [(0.0, machine) for machine in range(machines)]
    speed = [rate * chance.uniform(0.9, 1.1) for _ in free]
    end = 0.0
    while left:
        now, machine = heapq.heappop(free)
        hours = shard / speed[machine] / 3600
        death = chance.expovariate(1 / life)
        if death < hours:
            heapq.heappush(free, (now + death + 0.1, machine))  # another one in its place, 6 minutes later
            continue
        left, end = left - 1, max(end, now + hours)
        heapq.heappush(free, (now + hours, machine))
    return end


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--machines", type=int, nargs="+", default=[1, 10, 100])
    options = parser.parse_args()
    names = [str(path) for path in sorted(options.folder.iterdir())[: options.pictures]]
    times, own = measure(names)
    prepared, network = (1e3 * statistics.mean(column) for column in zip(*times, strict=True))
    own_ms = f"{1e3 * own:.3f} ms of Python's own"
    print(f"a picture, one thread: {prepared:.2f} ms to prepare, {network:.2f} ms in the network, {own_ms}")
    here = os.cpu_count()
    rates = []
    for _ in range(3):
        began = time.perf_counter()
        list(effnet_np.classify(iter(names * 3), backend="numba", top_k=1))
        rates.append(3 * len(names) / (time.perf_counter() - began))
    simulated = simulate(times, own, here)
    run = statistics.median(rates)
    print(f"{here} cores: simulated {simulated:.0f} a second, run {run:.0f} ({simulated / run:.2f})")
    print("| cores | a second (simulated) | of so many single cores |\n|---|---|---|")
    single = simulate(times, own, 1)
    found = {cores: simulate(times, own, cores) for cores in options.cores}
    for cores, rate in found.items():
        print(f"| {cores} | {rate:.0f} | {rate / single / cores:.2f} |")
    rate = found[max(options.cores)]
    print(f"| pictures | machines of {max(options.cores)} cores | hours (simulated) | N / (3600 R M) |\n|---|---|---|---|")
    for pictures in (10**6, 10**9):
        for machines in options.machines:
            hours = many(rate, machines, pictures, shard=max(1000, min(100_000, pictures // machines // 10)))
            print(f"| {pictures:,} | {machines} | {hours:.2f} | {pictures / (3600 * rate * machines):.2f} |")


if __name__ == "__main__":
    main()
