"""The page as one file that needs no server: the same HTML, style and scripts, and the answers to what it can be asked.

It holds one picture's answer, the map, the channels of activations and blocks in 8 bits, and for the first labels the sums on
the strongest way back, from the logit to a pixel. The page itself says what it does not hold.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import zlib
from importlib.resources import files
from typing import Any

import numpy as np

from effnet_np.checkpoints.files import replacing
from effnet_np.explorer.api import Api, Query, to_json
from effnet_np.explorer.recording import INPUT, SCORES
from effnet_np.explorer.session import Run, Session

CLASSES = 3  # first labels whose way back to a pixel is kept
SIDE = 28  # rows and columns of a kept channel, at most
MOST_BYTES = 4_000_000  # of the channels in 8 bits, before compression: larger layers are reduced further
STRAIGHT = ("batch_norm", "pad2d", "conv2d")  # layers whose channels are not kept: what follows them shows as much


def export(session: Session, path: str | os.PathLike) -> int:
    """Write the page of the session's first model and last picture; give its size in bytes. The file is whole or absent."""
    about = {"model": next(iter(session.models)), "picture": next(reversed(session.pictures))}
    page = page_as_file(Api(session, {"against": None}), about)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(page)
    return len(page)


def page_as_file(api: Api, query: dict[str, str]) -> bytes:
    """The page of that model and picture. Raises KeyError or ValueError as every question does."""
    asked = Query(query)
    with api.session.lock:
        return render(saved(api, asked["model"], asked["picture"])).encode()


def saved(api: Api, model: str, picture: str) -> dict[str, Any]:
    """What the page is given in the server's place: {"answers": {question: answer}, "planes": {layer: channels}, ...}."""
    session, answers = api.session, {}
    run = session.run(model, picture)

    def keep(question: str, /, **query: Any) -> Any:
        texts = {key: str(value) for key, value in query.items()}
        key = "|".join([question, *(f"{field}={value}" for field, value in sorted(texts.items()))])
        if key not in answers:
            answers[key] = json.loads(api.answer(question, texts)[0])
        return answers[key]

    about = {"model": model, "picture": picture}
    opened = keep("open")
    opened["pictures"] = [each for each in opened["pictures"] if each["key"] == picture]
    opened |= {"models": [model], "against": None, "first": picture}
    keep("labels", model=model)
    keep("region", **about)
    keep("network", **about)
    classes = [prediction["index"] for prediction in keep("answer", **about)["predictions"]]
    if model_has_map(run):
        for index in classes:
            keep("cam", **about, **{"class": index})
    for index in classes[:CLASSES]:
        _walk(session, run, SCORES, (index, 0, 0), keep, about)
    for index in classes[CLASSES:]:
        keep("number", **about, name="classifier", at=f"{index},0,0")
    layers = [operation.name for operation in run.operations.values() if operation.kind not in STRAIGHT]
    ends = [part["operations"][-1]["name"] for part in keep("network", **about)["parts"]]
    for name in dict.fromkeys([INPUT, *layers, *ends]):
        keep("layer", **about, name=name)
    webp = base64.b64encode(session.pictures[picture].webp).decode()
    planes = _planes(session, run, [INPUT, *layers, *ends])
    return {"answers": answers, "planes": planes, "picture": picture, "webp": f"data:image/webp;base64,{webp}"}


def model_has_map(run: Run) -> bool:
    return run.model.config.pooling_type == "mean"


def _walk(session: Session, run: Run, name: str, at: tuple, keep: Any, about: dict[str, str]) -> None:
    """From a number to its largest term, and so on, until a pixel, a padding or nothing is left."""
    for _ in range(10 * len(run.operations)):
        keep("number", **about, name=name, at=",".join(map(str, at)))
        keep("layer", **about, name=name)
        step = session.number(run, name, at)["chain"][-1]
        if step["form"] not in ("sum", "product", "softmax"):
            return
        products = np.abs(step["inputs"] * step.get("weights", 1))
        largest = at[0] if step["form"] == "softmax" else int(products.argmax())
        place = step["places"][largest]
        if place[0] < 0:
            return
        sources = step["sources"]
        several = step["kind"] in ("add", "scale_channels")
        name, at = sources[largest if several else 0], tuple(int(each) for each in place)


def _planes(session: Session, run: Run, names: list[str]) -> dict[str, Any]:
    """Each layer's channels in 8 bits, each from its own least to its own largest number; large ones by every n-th position."""
    shapes = {name: run.given(0).shape[1:] if name == INPUT else run.operations[name].shape for name in names}
    side = SIDE
    while side > 1 and sum(_count(shape, side) for shape in shapes.values()) > MOST_BYTES:
        side -= 1
    return {name: _coarse(session.output(run, name)[1], side) for name in dict.fromkeys(names)}


def _steps(shape: tuple[int, ...], side: int) -> tuple[int, int]:
    height, width = (*shape, 1, 1)[1:3]
    return -(-height // side), -(-width // side)


def _count(shape: tuple[int, ...], side: int) -> int:
    height, width = (*shape, 1, 1)[1:3]
    down, across = _steps(shape, side)
    return shape[0] * -(-height // down) * -(-width // across)


def _coarse(output: np.ndarray, side: int) -> dict[str, Any]:
    down, across = _steps(output.shape, side)
    planes = output.reshape(*output.shape, *[1] * (3 - output.ndim))[:, ::down, ::across]
    low, high = planes.min((1, 2)), planes.max((1, 2))
    span = np.where(high > low, high - low, 1)[:, None, None]
    data = np.round((planes - low[:, None, None]) / span * 255).astype(np.uint8)
    encoded = base64.b64encode(data.tobytes()).decode()
    facts = {"height": planes.shape[1], "width": planes.shape[2], "low": low.tolist(), "high": high.tolist()}
    return facts | {"base64": encoded}


# -- the file -----------------------------------------------------------------------------------------------------------


def static_files() -> dict[str, bytes]:
    """The page's own files by name."""
    folder = files("effnet_np.explorer") / "static"
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def render(answers: dict[str, Any]) -> str:
    """The page's own files in one, which loads nothing: its policy allows these scripts and this style, and no other."""
    known = {name: data.decode() for name, data in static_files().items() if not name.endswith(".jpg")}
    packed = base64.b64encode(zlib.compress(to_json(answers), 9)).decode()
    style = known["explorer.css"]
    scripts = [f'const SAVED_PACKED = "{packed}";'] + [
        known[name] for name in re.findall(r'<script defer src="(.*?)">', known["index.html"])
    ]
    script = "\n".join(scripts)
    if "</" + "script" in script or "</" + "style" in style:
        raise ValueError("a script of the page would end itself")
    sources = f"script-src 'sha256-{_digest(script)}'; style-src 'sha256-{_digest(style)}'"
    policy = f"default-src 'none'; {sources}; img-src data: blob:; base-uri 'none'; form-action 'none'"
    page = re.sub(r'<script defer src=".*?"></script>\n', "", known["index.html"])
    page = page.replace('<link rel="stylesheet" href="explorer.css">', f"<style>{style}</style>")
    page = page.replace(
        '<meta charset="utf-8">', f'<meta charset="utf-8">\n<meta http-equiv="content-security-policy" content="{policy}">'
    )
    return page.replace("</body>", f"<script>{script}</script>\n</body>")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
