"""The explorer in a real browser: Chromium, driven by Playwright. Where either is missing, these tests skip and say so."""

import contextlib
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from effnet_np import EfficientNetConfig, EfficientNetForImageClassification, EfficientNetImageProcessor, ops
from effnet_np.inference.classify import get_model
from effnet_np.tracing.trace import Trace, enliven

from helpers import CHELSEA, COFFEE

playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install -e '.[test-browser]'")
server = pytest.importorskip("effnet_np.explorer.server", reason="no Starlette or uvicorn: pip install -e '.[explore]'")

from effnet_np.explorer.session import Session  # noqa: E402

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


@contextlib.contextmanager
def running(*arguments):
    explorer = server.Explorer(*arguments)
    thread = threading.Thread(target=explorer.serve, daemon=True)
    thread.start()
    yield explorer
    explorer.stop()
    thread.join(10)


@pytest.fixture(scope="module")
def explorer(golden):
    """A running explorer of Lite0 and the cat, beside the port's trace."""
    session = Session({"lite0": get_model("lite0")}, 20_000_000)
    session.add_picture(CHELSEA.read_bytes(), "chelsea.png")
    with running(session, {"against": golden.name}, Trace.load(golden)) as explorer:
        yield explorer


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
    _walk_to_a_pixel(page)
    page.click("#step-back")
    assert page.page.is_visible("#terms tbody .from")


def _walk_to_a_pixel(page):
    """By the largest term each time; the page checks each step."""
    for _ in range(90):
        assert page.page.get_attribute("#check", "class") == "good", page.text("#check")
        if not page.page.is_visible("#terms tbody .from >> nth=0"):
            break
        page.click("#terms tbody .from >> nth=0")
    assert "The photograph's own pixel" in page.text("#chain")


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


def test_the_page_knows_every_activation(page):
    """Its functions in JavaScript, beside those of ops.py in float64."""
    numbers = np.linspace(-7, 7, 101)
    for name, function in {**ops.ACTIVATIONS, "sigmoid": ops.sigmoid}.items():
        script = "([name, numbers]) => numbers.map(FUNCTIONS[name])"
        found = page.page.evaluate(script, [function.__name__, numbers.tolist()])
        assert np.abs(np.array(found) - function(numbers)).max() < 1e-12, name


def test_without_a_picture_one_can_be_taken(browser):
    """And with squeeze-excite: a gate's number is a product, whose factors can be followed."""
    config = EfficientNetConfig.preset("b0", image_size=64)
    model = EfficientNetForImageClassification(config, initialize=False)
    enliven(model)
    model.image_processor = EfficientNetImageProcessor.preset("b0")
    model.image_processor.size = {"height": 64, "width": 64}
    with running(Session({"b0": model}, 20_000_000, kernels=False), {"against": None}) as explorer:
        context = browser.new_context()
        opened = Page(context, explorer.address)
        assert opened.text("#status") == "Choose a picture to begin."
        opened.click(".sample")
        assert opened.page.locator("#answer li").count() == 5
        opened.open(opened.at() + "&layer=efficientnet.encoder.blocks.3.squeeze_excite&channel=5&y=4&x=3")
        assert "× gate" in opened.text("#chain")
        assert "squeeze-excite" in opened.text("#number-note")
        opened.click("#terms tbody .from >> nth=1")
        assert "act_expand" in opened.text("#number-title")
        assert opened.page.is_visible("#gate")
        opened.click("#terms tbody .from >> nth=0")
        opened.click("#terms tbody .from >> nth=0")
        assert "the mean of 64 numbers" in opened.text("#chain")
        assert opened.page.get_attribute("#check", "class") == "good"
        assert opened.messages == []
        context.close()


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
    page.page.wait_for_selector("#rows tr.first")  # the page opens with it
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


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("#layer=nonsense", "no layer 'nonsense'"),
        (f"#layer={BLOCK4}&channel=40", "has channels 0 to 39"),
        (f"#layer={BLOCK4}&channel=1&y=99&x=0", "has no place"),
        ("#picture=0123456789abcdef", "no longer held"),
        ("#changes=drop:table", "a change is"),
    ],
)
def test_an_address_that_leads_nowhere_says_so(page, explorer, address, sentence):
    page.open(explorer.address + address)
    assert sentence in page.text("#status.error")
    page.messages.clear()  # the browser itself notes that the server said no


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


def test_a_saved_page_opens_without_a_server(page, browser, tmp_path):
    """Saved from the page, opened without a network: the way to a pixel adds up there, too, and what is not held is said."""
    with page.page.expect_download() as download:
        page.page.click("#save")
    path = tmp_path / "page.html"
    download.value.save_as(path)
    assert path.stat().st_size <= 6_000_000
    context = browser.new_context(offline=True)
    opened = Page(context, path.as_uri())
    assert opened.text("#answer li:first-child .score") == "38.5%"
    assert "What it does not hold, it says" in opened.text("#about")
    opened.click("#open-logit")
    _walk_to_a_pixel(opened)
    assert opened.page.is_disabled("#blur")
    opened.open(path.as_uri() + f"#layer={BLOCK4}&channel=7&y=10&x=3")
    assert "does not hold that" in opened.text("#status")
    assert opened.page.is_visible("#plane")
    assert opened.messages == []
    context.close()


def test_only_channels_in_sight_exist(page, explorer):
    """Of the classifier's 1,000, and of the 1,280 before; scrolling brings others."""
    page.open(explorer.address + "#layer=classifier&sort=index")
    tiles = page.page.locator("#channels button")
    assert tiles.count() < 200
    assert tiles.first.inner_text().startswith("0:")
    page.page.evaluate("document.querySelector('#channels').scrollTop = 1e6")
    page.page.wait_for_selector("#channels [data-channel='999']")
    assert tiles.count() < 200


def test_the_readme_has_a_picture_of_it(browser, tmp_path):
    """Made here: README_PICTURE=effnet_np/explorer/page.webp pytest tests/test_explorer_browser.py -k readme."""
    session = Session({"lite0": get_model("lite0")}, 20_000_000)
    session.add_picture(CHELSEA.read_bytes(), "chelsea.png")
    with running(session, {"against": None}) as explorer:
        context = browser.new_context(viewport={"width": 1360, "height": 1500})
        state = "#layer=efficientnet.encoder.blocks.4.depthwise_conv.depthwise_act&channel=214&y=10&x=3&overlay=60"
        opened = Page(context, explorer.address + state)
        opened.page.evaluate("scrollTo(0, 0)")
        opened.page.screenshot(path=tmp_path / "page.png")
        context.close()
    picture = PIL.Image.open(tmp_path / "page.png").convert("RGB")
    assert picture.size == (1360, 1500)
    if os.environ.get("README_PICTURE"):
        picture.save(os.environ["README_PICTURE"], "WEBP", quality=75, method=6)
    kept = PIL.Image.open(Path(__file__).parent.parent / "effnet_np" / "explorer" / "page.webp")
    assert kept.size == picture.size
