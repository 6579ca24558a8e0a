"""README, pasted in order: every block of Python and every line of shell runs, but those whose source says why not.

A block whose comment begins with "not run:" is left out; what follows in a block of text must be in what the last one printed.
"""

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image
import pytest

import effnet_np

from helpers import CHELSEA, IMAGES, assert_same, hf_model, tiny_config

README = (Path(__file__).parent.parent / "README.md").read_text()


class Block(NamedTuple):
    comment: str  # of the line above it, "" where there is none
    language: str
    text: str


BLOCKS = [Block(*found) for found in re.findall(r"(?:<!-- ([^\n]*) -->\n)?```(\w*)\n(.*?)\n```\n", README, re.S)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where README is followed: beside the photographs, with a small network in place of the hub's, and the command."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "notebooks").mkdir()
    (folder / "notebooks" / "images").symlink_to(IMAGES)
    PIL.Image.open(CHELSEA).convert("RGB").save(folder / "photo.jpg")
    for label, name in (("cat", "chelsea"), ("cup", "coffee")):  # one's own classes
        (folder / "photos" / label).mkdir(parents=True)
        for shift in range(5):
            part = PIL.Image.open(IMAGES / f"{name}.png").convert("RGB").crop((shift, shift, shift + 250, shift + 250))
            part.save(folder / "photos" / label / f"{shift}.jpg")
    config = tiny_config(num_labels=1000, id2label=None)
    hf_model(config).save_pretrained(folder / "google" / "efficientnet-b0")
    effnet_np.EfficientNetImageProcessor(size=64).save_pretrained(folder / "google" / "efficientnet-b0")
    (folder / "effnet-np").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m effnet_np "$@"\n')
    (folder / "effnet-np").chmod(0o755)
    before = os.getcwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def pasted(folder):
    """Runs all blocks of one language in order, and gives what each printed; Python's names as they were after each."""
    environment = os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    names: dict = {}
    ran: list[tuple[Block, str, dict]] = []
    for block in BLOCKS:
        if block.comment.startswith("not run:") or block.language not in ("python", "sh"):
            continue
        if block.language == "python":
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(block.text, "README.md", "exec"), names)
            ran.append((block, out.getvalue(), dict(names)))
        else:
            done = subprocess.run(["sh", "-ec", block.text], capture_output=True, text=True, env=environment)
            assert done.returncode == 0, f"{block.text}\n{done.stderr}"
            ran.append((block, done.stdout, {}))
    return ran


def test_every_block_says_what_it_is():
    assert {block.language for block in BLOCKS} == {"python", "sh", "text", "mermaid"}
    assert len(BLOCKS) == README.count("```") // 2
    left_out = [block.comment for block in BLOCKS if block.comment.startswith("not run:")]
    assert all(re.match(r"not run: (installs|needs the network|compiles|serves)", comment) for comment in left_out)
    assert len(left_out) <= 10


def test_all_of_it_runs_and_prints_what_it_says(pasted):
    printed = {block.text: output for block, output, _ in pasted}
    last, checked = "", 0
    for block in BLOCKS:
        if block.text in printed:
            last = printed[block.text]
        elif block.language == "text":
            assert block.text in last, f"README says\n{block.text}\nand it is\n{last}"
            checked += 1
    assert checked >= 3


def test_figures_in_the_comments(pasted):
    names = next(names for block, _, names in pasted if "pixel_values" in names)
    first = effnet_np.classify("notebooks/images/chelsea.png", backend="numpy")[0]
    assert (first["label"], first["index"], f"{first['score']:.3f}") == ("tiger cat", 282, "0.385")
    assert names["effnet_np"].EfficientNetConfig().image_size == 600
    assert len(effnet_np.EfficientNetConfig.preset("b0").blocks()) == 16
    assert names["processor"](np.zeros((300, 400, 3), np.uint8), return_tensors="np").pixel_values.shape == (1, 3, 224, 224)


def before_and_after(pasted):
    found = [(output, names) for block, output, names in pasted if "google/efficientnet-b0" in block.text]
    assert len(found) == 2
    return found


def test_the_same_script_before_and_after(pasted):
    (theirs, before), (ours, after) = before_and_after(pasted)
    assert theirs == ours != ""
    assert before["model"].__module__.startswith("transformers.")
    assert after["model"].__module__ == "effnet_np.model"
    assert_same(after["logits"], before["logits"])


def test_each_line_of_the_table_before_and_after(pasted):
    rows = re.findall(r"^\| `(.+?)` ?(<!-- not run -->)? \| (?:`(.+?)`)? ?\|$", README, re.M)
    assert len(rows) >= 19
    (_, before), (_, after) = before_and_after(pasted)
    for left, left_out, right in rows:
        ours = plain(eval(right or left, dict(after)))
        if left_out:
            continue
        theirs = plain(eval(left, dict(before)))
        if isinstance(theirs, np.ndarray):
            assert_same(ours, theirs, left, alive="softmax" not in left)
        elif isinstance(theirs, tuple) and theirs:
            for one, other in zip(ours, theirs, strict=True):
                assert_same(one, plain(other), left)
        elif isinstance(theirs, float):
            assert ours == pytest.approx(theirs, rel=1e-4), left
        else:
            assert ours == theirs, left


def plain(value):
    """What both sides can be compared as: arrays, numbers, text; models by their class's name."""
    if hasattr(value, "detach"):
        return value.detach().numpy()
    if hasattr(value, "named_modules") or callable(value):
        return type(value).__name__
    if type(value).__name__ in ("device", "dtype", "Float64DType", "Float32DType"):
        return str(value).removeprefix("torch.")
    return value


def test_links_lead_somewhere():
    headings = {
        re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in README.splitlines() if line[:1] == "#"
    }
    for target in re.findall(r"\]\(([^)]+)\)", README):
        path, _, anchor = target.partition("#")
        if not path:
            assert anchor in headings, target
        elif "://" not in path:
            assert (Path(__file__).parent.parent / path).exists(), target


def test_files_that_are_named_exist():
    root = Path(__file__).parent.parent
    names = re.findall(r"`([\w/]+(?:\.py|\.c|/))`", README)
    assert len(names) > 30
    for name in names:
        if name.split("/")[0] not in (
            "golden",
            "mine",
            "photos",
            "flowers",
            "train",
            "val",
        ):  # what the commands on the page make
            assert any((folder / name).exists() for folder in (root, root / "effnet_np")), name


def test_the_house_has_all_its_rooms():
    """Every file and every package of effnet_np stands in the tables of the chapter, and every folder beside it."""
    root = Path(__file__).parent.parent
    house = README.partition("\n## The house\n")[2].partition("\n## ")[0]
    table = house.partition("\n| in `effnet_np/`")[2].partition("\n**")[0]
    rooms = {path.name + "/" if path.is_dir() else path.name for path in (root / "effnet_np").iterdir()}
    rooms |= {"kernels/", "weights/", "notebooks/", "tests/"}
    rooms -= {"__init__.py", "__main__.py", "__pycache__/", "py.typed", "version.py"}
    named = set(re.findall(r"`([\w/]+(?:\.py|/))`", table))
    assert rooms - named == set(), "which README's house does not name"
    assert named - rooms - {"effnet_np/"} == set(), "which do not exist"
