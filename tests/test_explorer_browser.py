"""The explorer in a real browser: Chromium, driven by Playwright. Where either is missing, these tests skip and say so."""

import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from effnet_np.inference.classify import get_model
from effnet_np.tracing.trace import Trace

from helpers import CHELSEA, COFFEE

playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install -e '.[test-browser]'")
server = pytest.importorskip("effnet_np.explorer.server", reason="no Starlette or uvicorn: pip install -e '.[explore]'")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if BROWSER is None:
    pytest.skip("no browser: apt-get install chromium", allow_module_level=True)

BLOCK4 = "efficientnet.encoder.blocks.4.projection"


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """A port that pads block 3 wrongly: the trace that it would write."""
    from effnet_np.inference.stream import preprocess

    model = get_model("lite0")
    pad = model.efficientnet.encoder.blocks[3].depthwise_conv.depthwise_conv_pad
    right, pad.padding = pad.padding, (2, 1, 2, 1)
    try:
        with Trace(model, layers=("pixel_values", "*.blocks.[2-4].*", "logits")) as trace:
            model(preprocess(model, CHELSEA)[None])
    finally:
        pad.padding = right
    path = tmp_path_factory.mktemp("port") / "port.h5"
    trace.save(path)
    return path


@pytest.fixture(scope="module")
def explorer(golden):
    """A running explorer of Lite0 and the cat, beside the port's trace."""
    from effnet_np.explorer.session import Session

    session = Session({"lite0": get_model("lite0")}, 20_000_000)
    session.add_picture(CHELSEA.read_bytes(), "chelsea.png")
    running = server.Explorer(session, {"against": golden.name}, Trace.load(golden))
    thread = threading.Thread(target=running.serve, daemon=True)
    thread.start()
    yield running
    running.stop()
    thread.join(10)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


class Page:
    """A page of the explorer that forgives no message on the console."""

    def __init__(self, context, address):
        self.messages = []
        self.page = context.new_page()
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.open(address)

    def open(self, address):
        self.page.goto("about:blank")
        self.page.goto(address)
        self.settle()

    def rendered(self):
        """How often the page has shown what its address says; None while it is at it."""
        busy, count = self.page.evaluate("[document.body.ariaBusy, document.body.dataset.rendered]")
        return int(count) if busy == "false" else None

    def settle(self, before=0):
        """Until it has shown more than that, and what was asked for last."""
        deadline = time.monotonic() + 20
        while (self.rendered() or 0) <= before:
            assert time.monotonic() < deadline, "the page does not come to rest"
            self.page.wait_for_timeout(10)

    def click(self, selector):
        before = self.rendered()
        self.page.click(selector)
        self.settle(before)

    def text(self, selector):
        return self.page.inner_text(selector)

    def at(self):
        return self.page.url


@pytest.fixture
def page(browser, explorer):
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    opened = Page(context, explorer.address)
    yield opened
    context.close()
    assert opened.messages == []


def test_the_answer_and_a_dropped_picture(page):
    assert page.text("#answer li:first-child .name") == "tiger cat"
    assert page.text("#answer li:first-child .score") == "38.5%"
    before = page.rendered()
    drop = """async bytes => {
        const data = new DataTransfer();
        data.items.add(new File([Uint8Array.from(bytes)], "cup.png", {type: "image/png"}));
        document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
    }"""
    page.page.evaluate(drop, list(COFFEE.read_bytes()))
    page.settle(before)
    assert page.text("#answer li:first-child .name") == "espresso"
    assert page.text("#answer li:first-child .score") == "95.1%"
    page.page.set_input_files("#file", {"name": "notes.png", "mimeType": "image/png", "buffer": b"no picture"})
    page.page.wait_for_selector("#status.error")
    assert "no picture of a known format" in page.text("#status")
    page.messages.clear()  # the browser itself notes that the server said no


def test_from_a_logit_back_to_a_pixel(page):
    """Every step's terms add up to the number, and the way ends at the photograph."""
    page.click("#open-logit")
    assert "classifier [282, 0, 0]" in page.text("#number-title")
    for _ in range(90):
        assert page.page.get_attribute("#check", "class") == "good", page.text("#check")
        first = page.page.query_selector("#terms tbody .from")
        if first is None or not first.is_visible():
            break
        page.click("#terms tbody .from >> nth=0")
    assert "The photograph's own pixel" in page.text("#chain")
    page.click("#step-back")
    assert page.page.is_visible("#terms tbody .from")


def test_a_sum_that_is_wrong_is_called_wrong(page, explorer):
    """The page adds up what it was given: one weight that is not the network's, and it says so."""
    forged = page.page.evaluate(
        """async () => {
            const number = await ask("number", runOf(current, {name: "classifier", at: "282,0,0"}));
            const right = agrees(number.chain[0]);
            number.chain[0].weights[5] += 0.01;
            return [right, agrees(number.chain[0])];
        }"""
    )
    assert forged == [True, False]


def test_a_link_leads_back_to_the_same_number(page, browser, explorer):
    page.click("#map li:nth-child(6) button")
    page.page.fill("#place [name=channel]", "7") if page.page.is_visible("#place") else page.click("#channels button >> nth=0")
    page.page.fill("#place [name=channel]", "7")
    page.page.fill("#place [name=y]", "10")
    page.page.fill("#place [name=x]", "3")
    page.click("#place button")
    title, note = page.text("#number-title"), page.text("#number-note")
    assert title == "block 4 · projection [7, 10, 3] = 4.794498"
    assert "It sees rows 54 to 120, columns 0 to 64" in note
    context = browser.new_context()
    other = Page(context, page.at())
    assert (other.text("#number-title"), other.text("#number-note")) == (title, note)
    assert other.messages == []
    context.close()


def test_a_silenced_channel_moves_the_answer(page, explorer):
    page.open(explorer.address + f"#layer={BLOCK4}&channel=7")
    page.click("#silence")
    assert "changes=silence" in page.at()
    assert page.text("#answer li:first-child .score") != "38.5%"
    assert page.page.get_attribute("#silence", "aria-pressed") == "true"
    assert "channel 7 silenced" in page.text("#changes")
    page.click("#undo")
    assert page.text("#answer li:first-child .score") == "38.5%"


def test_the_first_wrong_layer_of_a_port(page):
    page.page.select_option("#beside", "trace")
    page.page.wait_for_selector("#rows tr.first")
    first = page.text("#rows tr.first td:first-child")
    assert "blocks.3.depthwise_conv.depthwise_conv_pad" in first
    assert "padding" in page.text("#hints")
    page.click("#rows tr.first button")
    page.page.wait_for_selector("#three canvas")
    assert page.page.locator("#three canvas").count() == 3


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    """axe-core's script: AXE_JS names it, or npm fetches it into a folder of this test's own."""
    if os.environ.get("AXE_JS"):
        return Path(os.environ["AXE_JS"]).read_text()
    if shutil.which("npm") is None:
        pytest.skip("no axe-core: set AXE_JS to its axe.min.js, or install npm")
    folder = tmp_path_factory.mktemp("axe")
    done = subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "axe-core@4"], cwd=folder, capture_output=True, timeout=120
    )
    if done.returncode:
        pytest.skip("no axe-core: npm could not fetch it")
    return (folder / "node_modules/axe-core/axe.min.js").read_text()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 380)])
def test_accessibility(browser, explorer, axe, scheme, width):
    """axe-core finds nothing against WCAG 2.2 AA, in a state with every panel open; and nothing is wider than the screen."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    state = f"#layer={BLOCK4}&channel=7&y=10&x=3&overlay=60&beside=trace&changes=silence:{BLOCK4}:3"
    opened = Page(context, explorer.address + state)
    opened.page.wait_for_selector("#three canvas")
    opened.page.evaluate(axe)
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    found = opened.page.evaluate("tags => axe.run({runOnly: tags})", tags)
    assert [(each["id"], each["nodes"][0]["html"]) for each in found["violations"]] == []
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.messages == []
    context.close()


def test_by_keyboard_alone(page):
    """From the map to a number, without a mouse."""
    page.page.focus("#map button[tabindex='0']")
    for _ in range(5):
        page.page.keyboard.press("ArrowRight")
    page.page.keyboard.press("Enter")
    page.page.wait_for_selector("#channels button")
    page.settle()
    page.page.focus("#channels button[tabindex='0']")
    page.page.keyboard.press("ArrowRight")
    page.page.keyboard.press("Enter")
    page.page.wait_for_selector("#plane", state="visible")
    page.settle()
    page.page.focus("#plane")
    page.page.keyboard.press("ArrowDown")
    page.page.wait_for_selector("#number-panel:not([hidden]) #check.good")
    assert "block 4" in page.text("#number-title")


def test_an_exported_page_opens_without_a_server(browser, tmp_path):
    from effnet_np.explorer.export import export
    from effnet_np.explorer.session import Session

    session = Session({"lite0": get_model("lite0")}, 20_000_000)
    session.add_picture(CHELSEA.read_bytes(), "chelsea.png")
    path = tmp_path / "page.html"
    assert export(session, {"against": None}, path) == path.stat().st_size <= 6_000_000
    context = browser.new_context(offline=True)
    opened = Page(context, path.as_uri())
    assert opened.text("#answer li:first-child .score") == "38.5%"
    assert "What it does not hold, it says" in opened.text("#about")
    opened.click("#open-logit")
    for _ in range(90):
        assert opened.page.get_attribute("#check", "class") == "good"
        first = opened.page.query_selector("#terms tbody .from")
        if first is None or not first.is_visible():
            break
        opened.click("#terms tbody .from >> nth=0")
    assert "The photograph's own pixel" in opened.text("#chain")
    assert opened.page.is_disabled("#blur")
    opened.open(path.as_uri() + "#layer=efficientnet.encoder.blocks.4.projection&channel=7&y=10&x=3")
    assert "does not hold that" in opened.text("#status")
    assert opened.page.is_visible("#plane")
    assert opened.messages == []
    context.close()
