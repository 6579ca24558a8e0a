"""How quick the explorer is, and its server's memory: python tests/benchmark_explorer.py [screen] [lite0] [b4] [pictures]

Times are taken at the page in Chromium where it says "on screen", and at the server's socket where it says "answered". The
kernels should be warm (`effnet-np warmup`), and the machine idle. B4 has random weights that keep activations alive. At the
socket each question is asked of three pictures, and its least time counts: "median" and "most" are over the questions.
"""

import http.client
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import numpy as np
import PIL.Image

import effnet_np
from effnet_np.tracing.trace import enliven

CHELSEA = Path(__file__).parent.parent / "notebooks" / "images" / "chelsea.png"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Explorer:
    """`effnet-np explore` in a process of its own."""

    def __init__(self, *arguments):
        self.began = time.perf_counter()
        command = [sys.executable, "-m", "effnet_np", "explore", *map(str, arguments), "--no-browser"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.address = self.process.stdout.readline().strip()
        self.place = urlsplit(self.address)
        self.connection = http.client.HTTPConnection(self.place.netloc)

    def __enter__(self):
        try:
            opened = self.ask("open")
        except OSError:
            self.__exit__()
            raise
        self.about = {"model": opened["models"][0], "picture": opened["first"]}
        return self

    def __exit__(self, *exception):
        self.process.terminate()
        self.process.wait(10)

    def ask(self, question, /, **query):
        self.connection.request("GET", f"{self.place.path}api/{question}?{urlencode(query)}")
        response = self.connection.getresponse()
        body = response.read()
        return json.loads(body) if "json" in response.headers["content-type"] else body

    def send(self, data):
        self.connection.request("POST", f"{self.place.path}api/picture?name=x", data, {"Origin": f"http://{self.place.netloc}"})
        return json.loads(self.connection.getresponse().read())["key"]

    def memory(self, which):
        """MB: VmRSS is now, VmHWM the most there ever was."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(which):
                return int(line.split()[1]) / 1024
        raise KeyError(which)

    def cpu(self):
        """Seconds of CPU so far."""
        words = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def operations(self):
        return [each for part in self.ask("network", **self.about)["parts"] for each in part["operations"]]


def timed(function, *arguments, **options):
    began = time.perf_counter()
    function(*arguments, **options)
    return 1000 * (time.perf_counter() - began)


def told(what, milliseconds, goal=None, cpu=None):
    line = f"{what:64} median {statistics.median(milliseconds):7.1f} ms, most {max(milliseconds):7.1f} ms"
    line += f"; the server's CPU, mean {cpu:6.1f} ms" if cpu else ""
    print(line + (f"   (goal: {goal} ms)" if goal else ""), flush=True)


def rounds(explorer, function, every):
    """The function's list of milliseconds for each of three pictures -> the least of each question, and CPU a question."""
    found, cpu, operations = [], 0.0, explorer.operations()[::every]
    for name in ("chelsea.png", "coffee.png", "rocket.jpg"):
        about = {**explorer.about, "picture": explorer.send((CHELSEA.parent / name).read_bytes())}
        explorer.ask("answer", **about)
        explorer.ask("answer", **about, changes="grey:0.1")  # the kernels' plan is made
        before = explorer.cpu()
        found.append(function(explorer, about, operations))
        cpu += explorer.cpu() - before
    return np.min(found, axis=0).tolist(), 1000 * cpu / np.size(found)


def layers(explorer, about, operations):
    """Statistics, and the channels that are in sight at once."""
    milliseconds = []
    for operation in operations:
        query = {**about, "name": operation["name"]}
        first = ",".join(map(str, range(min(operation["shape"][0], 60))))
        began = time.perf_counter()
        explorer.ask("layer", **query)
        explorer.ask("planes", **query, channels=first)
        milliseconds.append(1000 * (time.perf_counter() - began))
    return milliseconds


def numbers(explorer, about, operations):
    """One in the middle of each operation."""
    places = [(each["name"], [side // 2 for side in (*each["shape"], 1, 1)[:3]]) for each in operations]
    return [timed(explorer.ask, "number", **about, name=name, at=",".join(map(str, at))) for name, at in places]


def what_if(explorer, about, operations):
    """A channel of each silenced, but of the scores."""
    names = [each["name"] for each in operations if each["kind"] != "softmax"]
    return [timed(explorer.ask, "answer", **about, changes=f"silence:{name}:2") for name in names]


def on_screen():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        began = time.perf_counter()
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        print(f"{'Chromium itself, until it is open':64} {time.perf_counter() - began:14.2f} s")
        firsts = []
        for _ in range(5):
            explorer = Explorer(CHELSEA)
            with explorer:
                page.goto(explorer.address)
                page.wait_for_selector("#answer li .score")
                firsts.append(1000 * (time.perf_counter() - explorer.began))
        told("on screen: from command to the first answer, browser open", firsts, 2500)
        with Explorer(CHELSEA) as explorer:
            page.goto(explorer.address)
            page.wait_for_selector("#answer li .score")
            parts, numbers, answers, changes = [], [], [], []
            for part in range(1, 19):
                parts.append(shown(page, f"#map li:nth-child({part}) button"))
                shown(page, "#channels button >> nth=0")
                numbers.append(shown(page, "#place button"))
                changes.append(shown(page, "#silence"))
                answers.append(page.evaluate("window.answeredAt - window.began"))
                shown(page, "#undo")
            told("on screen: a layer's channels, Lite0", parts, 200)
            told("on screen: a number's sum, Lite0", numbers, 100)
            told("on screen: a channel silenced, the answer has moved, Lite0", answers)
            told("on screen: a channel silenced, all panels anew, Lite0", changes)
        browser.close()


def shown(page, selector):
    """Milliseconds from a click until everything is shown, measured in the page."""
    page.wait_for_selector(selector)
    before = int(page.evaluate("document.body.dataset.rendered"))
    page.evaluate(
        "selector => { window.began = performance.now(); document.querySelector(selector).click(); }", selector.split(" >>")[0]
    )
    while int(page.evaluate("document.body.dataset.rendered")) == before:
        page.wait_for_timeout(1)
    return page.evaluate("window.shownAt - window.began")


def random_b4(folder):
    model = effnet_np.EfficientNetForImageClassification(effnet_np.EfficientNetConfig.preset("b4"), initialize=False)
    enliven(model)
    model.image_processor = effnet_np.EfficientNetImageProcessor.preset("b4")
    model.save_pretrained(folder)


def pictures(explorer, count=200):
    """One after another, each looked into; memory after each 50."""
    generator = np.random.default_rng(0)
    sizes = []
    for number in range(count):
        file = io.BytesIO()
        PIL.Image.fromarray(generator.integers(0, 256, (300, 400, 3), np.uint8)).save(file, "PNG", compress_level=0)
        about = {**explorer.about, "picture": explorer.send(file.getvalue())}
        explorer.ask("answer", **about)
        explorer.ask("layer", **about, name="efficientnet.encoder.blocks.2.expansion.expand_act")
        explorer.ask("answer", **about, changes="silence:efficientnet.encoder.blocks.2.expansion.expand_act:3")
        if number % 50 == 49:
            sizes.append(explorer.memory("VmRSS"))
    print(f"{'server memory after 50, 100, 150, 200 pictures':64} {', '.join(f'{size:.0f}' for size in sizes)} MB")


def served(name, goals, every, *arguments):
    """Every n-th operation's channels, number and change at the socket, and the memory that the server took for them."""
    with Explorer(CHELSEA, *arguments) as explorer:
        questions = {"a layer's statistics and 60 channels": layers, "a number's sum": numbers, "what if": what_if}
        for (what, function), goal in zip(questions.items(), goals, strict=True):
            milliseconds, cpu = rounds(explorer, function, every)
            told(f"answered: {what}, {name}", milliseconds, goal, cpu)
        print(f"{f'server memory, at most, {name}':64} {explorer.memory('VmHWM'):14.0f} MB", flush=True)


def main():
    wanted = sys.argv[1:] or ["screen", "lite0", "b4", "pictures"]
    print(f"load average {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
    if "screen" in wanted and BROWSER is None:
        print("no browser: apt-get install chromium; what is on screen is not measured")
    elif "screen" in wanted:
        on_screen()
    if "lite0" in wanted:
        served("Lite0", (200, 100, 50), 2)
    if "b4" in wanted:
        with tempfile.TemporaryDirectory() as folder:
            random_b4(folder)
            served("B4", (None, None, 300), 9, "--model", folder)
    if "pictures" in wanted:
        with Explorer(CHELSEA) as explorer:
            pictures(explorer)
    print(f"load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
