"""How quick the explorer is, and how much memory its server takes: python tests/benchmark_explorer.py

Times are taken at the page in Chromium where it says "on screen", and at the server's socket where it says "answered". The
kernels should be warm (`effnet-np warmup`), and the machine idle. B4 has random weights that keep activations alive.
"""

import http.client
import io
import json
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
        body = self.connection.getresponse().read()
        return json.loads(body) if body[:1] == b"{" else body

    def send(self, data):
        self.connection.request("POST", f"{self.place.path}api/picture?name=x", data, {"Origin": f"http://{self.place.netloc}"})
        return json.loads(self.connection.getresponse().read())["key"]

    def memory(self, which):
        """MB: VmRSS is now, VmHWM the most there ever was."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(which):
                return int(line.split()[1]) / 1024
        raise KeyError(which)

    def operations(self):
        return [each for part in self.ask("network", **self.about)["parts"] for each in part["operations"]]


def timed(function, *arguments, **options):
    began = time.perf_counter()
    function(*arguments, **options)
    return 1000 * (time.perf_counter() - began)


def told(what, milliseconds, goal=None):
    line = f"{what:64} median {statistics.median(milliseconds):7.1f} ms, most {max(milliseconds):7.1f} ms"
    print(line + (f"   (goal: {goal} ms)" if goal else ""), flush=True)


def layers_and_numbers(explorer):
    """Every operation once: its statistics and all of its channels; and a number of it."""
    channels, numbers = [], []
    for operation in explorer.operations():
        query = {**explorer.about, "name": operation["name"]}
        count, height, width = (*operation["shape"], 1, 1)[:3]
        first = ",".join(map(str, range(min(count, 60))))  # more are not in sight at once
        began = time.perf_counter()
        explorer.ask("layer", **query)
        explorer.ask("planes", **query, channels=first)
        channels.append(1000 * (time.perf_counter() - began))
        numbers.append(timed(explorer.ask, "number", **query, at=f"{count // 2},{height // 2},{width // 2}"))
    return channels, numbers


def what_if(explorer):
    """A channel silenced at the end of each block, and in each block's first layer."""
    milliseconds = []
    operations = explorer.operations()
    for operation in operations:
        if operation["name"].endswith(("expand_act", "project_bn", "embeddings.activation")):
            change = f"silence:{operation['name']}:3"
            milliseconds.append(timed(explorer.ask, "answer", **explorer.about, changes=change))
    return milliseconds


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


def served(name, goals, *arguments):
    """Layers, numbers and changes at the socket, and the memory that the server took for them."""
    with Explorer(CHELSEA, *arguments) as explorer:
        channels, numbers = layers_and_numbers(explorer)
        told(f"answered: a layer's statistics and 60 channels, {name}", channels, goals[0])
        told(f"answered: a number's sum, {name}", numbers, goals[1])
        explorer.ask("answer", **explorer.about, changes="grey:0.1")  # the kernels' plan is made
        told(f"answered: what if, {name}", what_if(explorer), goals[2])
        print(f"{f'server memory, at most, {name}':64} {explorer.memory('VmHWM'):14.0f} MB", flush=True)


def main():
    if BROWSER is None:
        print("no browser: apt-get install chromium; what is on screen is not measured")
    else:
        on_screen()
    served("Lite0", (200, 100, 50))
    with tempfile.TemporaryDirectory() as folder:
        random_b4(folder)
        served("B4", (None, None, 300), "--model", folder)
    with Explorer(CHELSEA) as explorer:
        pictures(explorer)


if __name__ == "__main__":
    main()
