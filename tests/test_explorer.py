"""The explorer without its page: the sums behind numbers, changes, differences by layer, the server and who is let in."""

import contextlib
import http.client
import io
import json
import math
import socket
import subprocess
import sys
import threading
import time
from urllib.parse import urlencode

import numpy as np
import PIL.Image
import pytest

import effnet_np
from effnet_np.inference.classify import get_model
from effnet_np.inference.stream import preprocess
from effnet_np.tracing.trace import Trace, enliven

from helpers import CHELSEA, COFFEE

server = pytest.importorskip("effnet_np.explorer.server", reason="no Starlette or uvicorn: pip install -e '.[explore]'")

from effnet_np.explorer import sides, terms, what_if  # noqa: E402
from effnet_np.explorer.recording import INPUT  # noqa: E402
from effnet_np.explorer.session import MOST_PICTURES, Session  # noqa: E402

BLOCK4 = "efficientnet.encoder.blocks.4.projection"
ROUNDING = 2.0**-24


def small(preset="b0", **options):
    """A live network of that kind (B0: with squeeze-excite), of 64 x 64 pixels and 10 labels."""
    config = effnet_np.EfficientNetConfig.preset(preset, num_labels=10, image_size=64, **options)
    model = effnet_np.EfficientNetForImageClassification(config, initialize=False)
    enliven(model, 3)
    model.image_processor = effnet_np.EfficientNetImageProcessor.preset("b0")
    model.image_processor.size = {"height": 64, "width": 64}
    return model


def session_of(model, kernels=False):
    session = Session({"m": model}, 20_000_000, kernels=kernels)
    return session, session.add_picture(CHELSEA.read_bytes(), "chelsea.png").key


@pytest.fixture(scope="module")
def lite0():
    return session_of(get_model("lite0"))


# -- numbers --------------------------------------------------------------------------------------------------------------


def remade(step):
    """What a step's terms come to, in float64, and what float32 may have lost: the page's arithmetic, in Python."""
    form = step["form"]
    if form == "sum":
        products = step["inputs"].astype(np.float64) * step["weights"].astype(np.float64)
        size = np.abs(products).sum() + abs(step["bias"] or 0)
        value = (math.fsum(products) + (step["bias"] or 0)) / step["divisor"]
        return value, (8 + math.sqrt(len(products))) * ROUNDING * size / step["divisor"]
    if form == "product":
        value = float(np.prod(step["inputs"].astype(np.float64)))
        return value, 2 * ROUNDING * abs(value)
    if form == "normalize":
        scale = step["weight"] / math.sqrt(step["variance"] + step["eps"])
        value = (step["x"] - step["mean"]) * scale + step["bias"]
        return value, 8 * ROUNDING * (abs(step["x"] * scale) + abs(step["mean"] * scale) + abs(step["bias"]))
    if form == "function":
        function = {**effnet_np.ops.ACTIVATIONS, "sigmoid": effnet_np.ops.sigmoid}[step["function"]]
        value = float(function(np.array([step["x"]], np.float64))[0])
        return value, 16 * ROUNDING * (abs(step["x"]) + abs(value))
    if form == "softmax":
        scores = effnet_np.ops.softmax(step["inputs"].astype(np.float64))
        value = float(scores[step["at"][0]])
        return value, 128 * ROUNDING * value
    if form == "pixel":
        value = ((step["pixel"] * step["rescale"] - step["offset"]) - step["mean"]) / step["std"] / step["divisor"]
        return value, 8 * ROUNDING * (abs(value) + 1 + abs(step["mean"] / step["std"] / step["divisor"]))
    assert form in ("copy", "zero")
    return (step["x"] if form == "copy" else 0.0), 0.0


NETWORKS = {
    "lite0": lambda: get_model("lite0"),
    "squeeze-excite": small,
    "fused": lambda: small("v2-b0"),
    "max pool, gelu": lambda: small(pooling_type="max", hidden_act="gelu"),
    "two labels at once": lambda: small(problem_type="multi_label_classification", hidden_act="mish"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_terms_of_every_operation_make_its_numbers(name):
    """Three places of every operation: the edge, and two by chance; the terms' inputs are the numbers that are there."""
    session, picture = session_of(NETWORKS[name]())
    run = session.run("m", picture)
    generator, kinds = np.random.default_rng(0), set()
    for operation in run.operations.values():
        shape = (*operation.shape, 1, 1)[:3]
        corner = (shape[0] - 1, 0, shape[2] - 1)
        for at in [corner, *(tuple(int(generator.integers(side)) for side in shape) for _ in range(2))]:
            chain = session.number(run, operation.name, at)["chain"]
            for step in chain:
                value, rounding = remade(step)
                assert abs(value - step["value"]) <= rounding, (operation.name, at, step["form"], value, step["value"])
            kinds |= {step["kind"] for step in chain}
            _check_places(session, run, chain[-1], generator)
    wanted = {"conv2d", "batch_norm", "pad2d", "linear", "add"}
    wanted |= {"scale_channels", "sigmoid"} if name != "lite0" else {"relu6"}
    wanted |= {"global_max_pool"} if "max" in name else {"global_average_pool"}
    assert wanted <= kinds


def _check_places(session, run, step, generator):
    if "inputs" not in step:
        return
    for index in generator.integers(len(step["inputs"]), size=5):
        place = tuple(step["places"][index].tolist())
        several = step["kind"] in ("add", "scale_channels")
        source = step["sources"][index if several else 0]
        there = 0.0 if place[0] < 0 else terms.number(session.output(run, source)[1][None], place)
        assert there == step["inputs"][index]


def test_the_parts_give_what_the_whole_gives(lite0):
    """Bit for bit, in every layer that a trace of the whole model records."""
    session, picture = lite0
    model, run = session.models["m"], session.run("m", picture)
    with Trace(model) as trace:
        logits = model(preprocess(model, CHELSEA)[None]).logits
    assert np.array_equal(run.logits, logits)
    for name in [INPUT, *run.operations]:
        if name != "scores":
            assert np.array_equal(session.output(run, name)[1], trace[name][0]), name
    for name in ("logits", "efficientnet.pooler_output", "efficientnet.encoder.blocks.3"):
        assert np.array_equal(session.output(run, name)[1].reshape(trace[name][0].shape), trace[name][0])


@pytest.mark.parametrize("place", [(7, 10, 3), (0, 0, 0), (39, 27, 14)])
def test_what_lies_outside_of_the_receptive_field_does_not_matter(lite0, place):
    """Noise outside changes no bit of the number; noise in the first or last row or column that it sees does."""
    session, picture = lite0
    model, run = session.models["m"], session.run("m", picture)
    field = terms.receptive_field(run.operations, BLOCK4, *place[1:])
    pixels = run.given(0)
    noise = np.random.default_rng(0).standard_normal(pixels.shape, np.float32)
    rows, columns = np.arange(224)[:, None], np.arange(224)
    top, left, bottom, right = (field[side] for side in ("top", "left", "bottom", "right"))
    inside = (rows >= top) & (rows <= bottom) & (columns >= left) & (columns <= right)

    def number(where):
        with Trace(model, layers=BLOCK4) as trace:
            model(np.where(where, pixels + noise, pixels))
        return trace[BLOCK4][(0, *place)]

    value = session.number(run, BLOCK4, place)["chain"][0]["value"]
    assert number(~inside) == value
    edges = [rows == top, rows == bottom, columns == left, columns == right]
    seen = [edge for edge, at in zip(edges, (top, bottom, left, right), strict=True) if 0 <= at < 224]
    assert seen
    assert all(number(edge & inside) != value for edge in seen)


# -- what if --------------------------------------------------------------------------------------------------------------


def test_a_silenced_channel_is_one_whose_weights_are_zero(lite0):
    session, picture = lite0
    name, channel = "efficientnet.encoder.blocks.4.expansion.expand_act", 17
    run = session.run("m", picture, f"silence:{name}:{channel}")
    model = effnet_np.EfficientNetForImageClassification.from_pretrained("lite0")
    norm = model.efficientnet.encoder.blocks[4].expansion.expand_bn
    norm.weight[channel] = norm.bias[channel] = 0
    expected = model(preprocess(model, CHELSEA)[None]).logits
    assert not np.array_equal(run.logits, session.run("m", picture).logits)
    assert np.array_equal(run.logits, expected)


def test_bias_and_gate():
    """As if the weights were others, seen at the block's end (in a random network, logits hardly move)."""
    model = small()
    session, picture = session_of(model)
    pixel_values, where = session.run("m", picture).given(0), "efficientnet.encoder.blocks.2"
    block, end = model.efficientnet.encoder.blocks[2], f"{where}.projection"

    def asked(changes):
        return session.output(session.run("m", picture, changes), end)[1]

    def computed():
        with Trace(model, layers=end) as trace:
            model(pixel_values)
        return trace[end][0]

    bias, gate = (
        asked(f"bias:{where}.depthwise_conv.depthwise_norm:5:3"),
        asked(f"gate:{where}.squeeze_excite.act_expand:5:0.25"),
    )
    before = computed()
    assert np.array_equal(before, asked("")), "the model is as it was"
    block.depthwise_conv.depthwise_norm.bias[5] *= 3
    assert np.array_equal(computed(), bias)
    assert not np.array_equal(bias, before)
    block.depthwise_conv.depthwise_norm.bias[5] /= 3
    block.squeeze_excite.expand.weight[5], block.squeeze_excite.expand.bias[5] = 0, math.log(0.25 / 0.75)
    after = computed()
    assert np.abs(after - gate).max() < 1e-5 * np.abs(after).max() < np.abs(gate - before).max()


def test_several_changes_and_only_what_lies_behind_them(lite0):
    session, picture = lite0
    run = session.run("m", picture)
    both = session.run("m", picture, f"silence:{BLOCK4}:7;silence:efficientnet.encoder.blocks.9:3;blur:2;grey:1")
    assert both.parts_computed == 18
    assert len(np.unique(both.pixels[0, 0])) == 1
    behind = session.run("m", picture, "silence:efficientnet.encoder.blocks.9:3")
    assert behind.parts_computed == 8
    assert behind.given(5) is run.given(5)
    chain = session.number(behind, "efficientnet.encoder.blocks.9.projection", (3, 0, 0))["chain"]
    assert (chain[0]["form"], chain[0]["value"]) == ("constant", 0.0)
    with pytest.raises(ValueError, match="no channel 40"):
        session.run("m", picture, f"silence:{BLOCK4}:40")
    assert np.array_equal(session.models["m"](run.given(0)).logits, run.logits)


@pytest.mark.parametrize(
    "text",
    ["silence:x", "gate:a:b:c", f"silence:{BLOCK4}:-1", "blur:99", "grey:nan", f"bias:{BLOCK4}:0:2", "drop:table", "x" * 5000],
)
def test_changes_that_cannot_be(text, lite0):
    with pytest.raises((ValueError, KeyError)):
        what_if.parse(text, lite0[0].models["m"])


@pytest.mark.parametrize("name", ["lite0", "squeeze-excite"])
def test_the_kernels_go_on_from_any_block(name):
    """Where they are warm: from each block's input to the logits that a whole run gives."""
    model = NETWORKS[name]()
    session, picture = session_of(model, kernels=True)
    kernels, run = session.kernels("m"), session.run("m", picture)
    if kernels is None:
        pytest.skip("the kernels are not warm: effnet-np warmup")
    for block in range(len(model.config.blocks()) + 1):
        logits = kernels.resume(block, run.given(block + 1), *run.given(0).shape[2:])
        assert np.abs(logits - run.logits).max() < 1e-5 * np.abs(run.logits).max(), block
    with pytest.raises(ValueError, match="block 2 takes"):
        kernels.resume(2, run.given(1), *run.given(0).shape[2:])
    changes = "silence:efficientnet.encoder.blocks.4:7"
    fast, slow = (Session({"m": model}, 10**7, kernels=each) for each in (True, False))
    answers = []
    for each in (fast, slow):
        key = each.add_picture(CHELSEA.read_bytes(), "").key
        answers.append(each.run("m", key, changes))
    assert [answer.backend for answer in answers] == ["kernels", "numpy"]
    assert np.abs(answers[0].logits - answers[1].logits).max() < 1e-5 * np.abs(answers[1].logits).max()


# -- side by side ---------------------------------------------------------------------------------------------------------


def test_the_first_wrong_layer_is_the_one_that_compare_names(lite0, tmp_path):
    session, picture = lite0
    model = effnet_np.EfficientNetForImageClassification.from_pretrained("lite0")
    model.efficientnet.encoder.blocks[3].depthwise_conv.depthwise_conv_pad.padding = (2, 1, 2, 1)
    with Trace(model, layers=(INPUT, "*.blocks.[23].*", "*.pooler*", "logits")) as trace:
        model(preprocess(model, CHELSEA)[None])
    trace.save(tmp_path / "port.h5")
    port, run = Trace.load(tmp_path / "port.h5"), session.run("m", picture)
    with Trace(session.models["m"], inputs=True, weights=True) as ours:
        session.models["m"](run.given(0))
    for judged, (first, second) in ((True, (port, ours)), (False, (ours, port))):
        expected = effnet_np.compare(first, second, layers=list(port))
        found = sides.differences(session, run, port, judged)
        assert found["first_divergence"] == expected.first_divergence.name
        assert found["hints"] == expected.hints != []
        statuses = {row.name: row.status for row in expected.rows}
        assert {row["name"]: row["status"] for row in found["layers"]} == {name: statuses[name] for name in port}
    same = sides.differences(session, run, ours, True)
    assert same["ok"], same["verdict"]


def test_two_pictures_and_two_models():
    session = Session({"lite0": get_model("lite0"), "small": small()}, 20_000_000, kernels=False)
    cat, cup = (session.add_picture(path.read_bytes(), path.name).key for path in (CHELSEA, COFFEE))
    found = sides.differences(session, session.run("lite0", cat), session.run("lite0", cup), False)
    assert found["first_divergence"] == INPUT
    assert {row["status"] for row in found["layers"]} == {"DIFF"}
    other = sides.differences(session, session.run("lite0", cat), session.run("small", cat), False)
    assert {"SHAPE", "MISSING"} <= {row["status"] for row in other["layers"]}
    row = found["layers"][20]
    plane = sides.plane_beside(session, session.run("lite0", cat), session.run("lite0", cup), row["opens"], row["channel"])
    assert np.array_equal(plane["data"], session.output(session.run("lite0", cup), row["opens"])[1][row["channel"]].reshape(-1))


# -- the server -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(session):
    running = server.Explorer(session, {"against": None})
    thread = threading.Thread(target=running.serve, daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not running.server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    try:
        yield running
    finally:
        running.stop()
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def running(lite0):
    with serving(lite0[0]) as explorer:
        yield explorer


def ask(running, path, method="GET", body=None, **headers):
    """(status, headers, body) of a request below the token; a header "" is left out, a path from "/" on is taken whole."""
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
    path = path if path.startswith("/") else f"/{running.token}/{path}"
    given = {"Host": f"127.0.0.1:{running.port}"} | {name.replace("_", "-"): value for name, value in headers.items()}
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in given.items():
        if value:
            connection.putheader(name, value)
    if body is not None:
        connection.putheader("Content-Length", str(len(body)))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has answered already, and reads no more
        connection.endheaders(body)
    response = connection.getresponse()
    data = response.read()
    connection.close()
    return response.status, dict(response.getheaders()), data


def own(running):
    return f"http://127.0.0.1:{running.port}"


def test_the_page_and_its_answers(running, lite0):
    status, headers, page = ask(running, "")
    assert status == 200
    assert b"EfficientNet explorer" in page
    assert "script-src 'self'" in headers["content-security-policy"]
    query = urlencode({"model": "m", "picture": lite0[1], "name": BLOCK4, "channels": "7,3"})
    status, headers, planes = ask(running, f"api/planes?{query}")
    assert np.array_equal(
        np.frombuffer(planes, "<f4"), lite0[0].output(lite0[0].run("m", lite0[1]), BLOCK4)[1][[7, 3]].reshape(-1)
    )
    assert json.loads(ask(running, "api/answer")[2])["error"] == "the question needs model="
    assert ask(running, f"api/answer?model=m&picture={'0' * 16}")[0] == 404
    for wrong in ("at=1,2", "at=9999,0,0", "at=-1,0,0", "at=a,b,c", "at=" + "1," * 999):
        assert ask(running, f"api/number?model=m&picture={lite0[1]}&name={BLOCK4}&{wrong}")[0] == 400, wrong


def test_only_this_machine(running):
    assert running.socket.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize("path", ["/", "/index.html", "/api/open", "/wrong/api/open", "//api/open", "/TOKEN", "/toke%6E/"])
def test_without_the_token_nothing_is_found(running, path):
    status, _, body = ask(running, path.replace("TOKEN", running.token[:-1]))
    assert status == 404
    assert b"EfficientNet" not in body
    assert running.token.encode() not in body


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:PORT", "127.0.0.1", "127.0.0.1:1", "0.0.0.0:PORT", "localhost.evil.example:PORT", ""]
)
def test_dns_rebinding(running, host):
    """A page of the web whose name is made to point here names itself as the host: it gets nothing, even with the token."""
    status, headers, body = ask(running, "api/open", Host=host.replace("PORT", str(running.port)))
    assert status in (400, 421)
    assert b"pictures" not in body
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site"}],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_requests_of_other_pages(running, method, headers):
    """Even with the token. A form or a fetch without CORS may be sent by any page: it changes nothing and is told nothing."""
    before = len(running.api.session.pictures)
    path = "api/picture" if method == "POST" else "api/open"
    status, given, body = ask(running, path, method, COFFEE.read_bytes() if method == "POST" else None, **headers)
    assert status == 403
    assert b"key" not in body
    assert len(running.api.session.pictures) == before
    assert not any(name.startswith("access-control") for name in given)


def test_a_link_elsewhere_opens_the_page_and_nothing_else(running):
    """As in a letter or a chat; not in a frame, and no answer."""
    link = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
    assert ask(running, "", **link)[0] == 200
    assert ask(running, "", **link | {"Sec_Fetch_Dest": "iframe"})[0] == 403
    assert ask(running, "api/open", **link)[0] == 403
    assert ask(running, "explorer.html?model=m", **link)[0] == 403


def test_other_methods(running):
    assert ask(running, "api/picture", "POST", b"x")[0] == 405, "a browser names the origin of a POST"
    for method in ("PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT"):
        assert ask(running, "api/open", method)[0] in (400, 405)


@pytest.mark.parametrize(
    "path",
    [
        "../../etc/passwd",
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e/%2e%2e/setup.cfg",
        "..\\..\\setup.cfg",
        "/etc/passwd",
        "./../server.py",
        "server.py",
        "static/index.html",
        "index.html%00.jpg",
        "api/..%2f..%2fserver.py",
        "%252e%252e/server.py",
    ],
)
def test_no_path_reaches_the_disk(running, path):
    status, _, body = ask(running, path)
    assert status in (400, 404), (status, body[:80])
    assert b"root:" not in body
    assert b"import" not in body


def bomb():
    """A PNG of a few kilobytes that says 30,000 x 30,000."""
    file = io.BytesIO()
    PIL.Image.new("L", (64, 64)).save(file, "PNG")
    data = bytearray(file.getvalue())
    data[16:24] = (30000).to_bytes(4, "big") * 2
    import zlib

    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        CHELSEA.read_bytes()[:5000],
        bomb(),
        b"\x89PNG\r\n\x1a\n" + bytes(1000),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    ],
    ids=["empty", "text", "cut off", "bomb", "zeros", "svg"],
)
def test_uploads_that_are_no_pictures(running, data):
    before = list(running.api.session.pictures)
    status, _, body = ask(running, "api/picture?name=x", "POST", data, Origin=own(running))
    assert status == 400
    assert json.loads(body)["error"]
    assert list(running.api.session.pictures) == before


def test_an_upload_that_is_too_large(running, monkeypatch):
    monkeypatch.setattr(server, "UPLOAD_BYTES", 1 << 20)
    status, _, body = ask(running, "api/picture", "POST", bytes(3 << 20), Origin=own(running))
    assert status == 413
    assert b"1 MB" in body


def test_an_upload_that_does_not_end(running, monkeypatch):
    monkeypatch.setattr(server, "UPLOAD_SECONDS", 0.5)
    head = f"POST /{running.token}/api/picture HTTP/1.1\r\nHost: 127.0.0.1:{running.port}\r\nOrigin: {own(running)}\r\n"
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
        connection.sendall(f"{head}Content-Length: 100\r\n\r\nabc".encode())
        assert b" 408 " in connection.recv(4096)


def test_fifty_connections_that_send_nothing(running, monkeypatch):
    """Nor those that stop in the middle of a head: others are answered at once, and these are closed."""
    monkeypatch.setattr(server, "SILENT_SECONDS", 1)
    silent = [socket.create_connection(("127.0.0.1", running.port), timeout=10) for _ in range(50)]
    try:
        for connection in silent[:25]:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: ")
        began = time.monotonic()
        assert ask(running, "api/open")[0] == 200
        assert time.monotonic() - began < 1
        assert all(connection.recv(1) == b"" for connection in silent)
    finally:
        for connection in silent:
            connection.close()


def test_heads_that_never_end(running):
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(b"GET / HTTP/1.1\r\n" + b"x: " + b"a" * (1 << 20))
        with contextlib.suppress(ConnectionError):
            assert b" 200 " not in connection.recv(4096)
    assert ask(running, "api/open")[0] == 200


def test_nothing_is_kept_without_end(running):
    """Neither pictures, nor runs, nor parts."""
    session = running.api.session
    image = np.zeros((32, 32, 3), np.uint8)
    for number in range(MOST_PICTURES + 3):
        image[0, 0] = number
        file = io.BytesIO()
        PIL.Image.fromarray(image).save(file, "PNG")
        assert ask(running, "api/picture?name=x", "POST", file.getvalue(), Origin=own(running))[0] == 200
    assert len(session.pictures) == MOST_PICTURES
    key = session.add_picture(CHELSEA.read_bytes(), "").key
    for channel in range(8):
        session.layer(session.run("m", key, f"silence:{BLOCK4}:{channel}"), BLOCK4)
    assert len(session._runs) <= 4
    assert {known[0] for known in session._recordings} <= set(session._runs.values())


# -- the page as a file -------------------------------------------------------------------------------------------------------


def test_the_command_writes_a_page_as_a_file(tmp_path, capsys):
    from effnet_np.cli import main

    path = tmp_path / "page.html"
    assert main(["explore", str(CHELSEA), "-o", str(path)]) == 0
    assert "MB, opens without a server" in capsys.readouterr().out
    page = path.read_text()
    assert path.stat().st_size <= 6_000_000
    assert "default-src 'none'" in page
    assert 'src="' not in page.split("<body>")[0], "it loads nothing"
    assert main(["explore", "-o", str(path)]) == 1
    assert main(["explore", str(tmp_path / "none.jpg"), "-o", str(path)]) == 1
    assert path.read_text() == page


def test_what_stands_beside_is_a_trace_or_a_model(tmp_path):
    from effnet_np.cli.explore import _against

    model = small()
    model.save_pretrained(tmp_path / "model")
    with Trace(model, layers="logits") as trace:
        model(np.zeros((1, 3, 64, 64), np.float32))
    trace.save(tmp_path / "trace.h5")
    (tmp_path / "neither.h5").write_bytes(b"neither")
    assert np.array_equal(_against(str(tmp_path / "trace.h5"))[0]["logits"], trace["logits"])
    assert _against(str(tmp_path / "model"))[1].num_labels == 10
    with pytest.raises(ValueError, match="neither a trace"):
        _against(str(tmp_path / "neither.h5"))


def test_without_the_extra_the_command_says_what_to_install():
    code = "import sys; sys.modules['starlette'] = None; from effnet_np.cli import main; sys.exit(main(['explore']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install 'effnet_np[explore]'" in done.stderr
