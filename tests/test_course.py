"""The course's own tools: what build.py refuses, and what the test of a reader's function says is wrong."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
sys.path.append(str(NOTEBOOKS))
import course  # noqa: E402

from effnet_np import EfficientNetConfig, Trace  # noqa: E402

spec = importlib.util.spec_from_file_location("course_build", NOTEBOOKS / "build.py")
assert spec is not None
assert spec.loader is not None
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)

FILES = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))


def notebook(*cells):
    """A made-up notebook: ("md", text) or ("code", source, printed)."""
    made = nbformat.v4.new_notebook()
    for kind, text, *printed in cells:
        if kind == "md":
            made.cells.append(nbformat.v4.new_markdown_cell(text))
        else:
            outputs = [nbformat.v4.new_output("stream", name="stdout", text=each) for each in printed]
            made.cells.append(nbformat.v4.new_code_cell(text, outputs=outputs))
    return made


@pytest.mark.parametrize("text", ["It is 33 times as much.", "About 0.47 of it.", "Some 27%, and −1.27.", "1,234 of them"])
def test_a_number_that_no_code_computed_is_refused(text):
    faults = build.sentence_faults(notebook(("code", "print(5)", "5"), ("md", text)), {})
    assert len(faults) == len(re.findall(build.NUMBER, text))


@pytest.mark.parametrize(
    "text",
    [
        "Printed: 33. Asserted: 0.47, and in percent 47%.",
        "In 2019 block 4 of notebook 05 had 5 × 5 kernels and blocks 9 to 15, `x = 17`, $3^4$.",
        "<details><summary>Answer</summary>99</details>",
        "Nothing here.\n\n## 2 · The next section may introduce 77",
    ],
)
def test_a_number_that_code_holds_may_stand(text):
    code = ("code", "print(x)\nassert x < 0.47", "x = 33")
    assert build.sentence_faults(notebook(code, ("md", text)), {}) == []
    assert build.sentence_faults(notebook(("code", "pass"), ("md", "It has 407 million.")), {"407": "somewhere"}) == []


def test_a_number_computed_only_later_is_refused():
    made = notebook(("code", "print(1)", "1"), ("md", "It is 33."), ("code", "print(33)", "33"))
    assert len(build.sentence_faults(made, {})) == 1


def test_form_faults_names_what_is_missing():
    made = notebook(("md", "# T\n\nWhat you will know"), ("code", "\n".join(["x = 1"] * 20)), ("md", "## Exercises\n\nnone"))
    text = "\n".join(build.form_faults(made, "00_x.ipynb"))
    for word in ("links", "solution", "predicted", "arises", "20 lines", "draw.here", "check(", "assertions", "cover"):
        assert word in text


def test_links_come_from_one_constant_and_are_put_in_once():
    first = build.with_links("# Title\n\nText", "00_x.ipynb")
    assert first.count(course.REPOSITORY) == 2
    assert build.with_links(first, "00_x.ipynb") == first
    assert first.startswith("# Title\n\n[Run it on Binder](https://mybinder.org/")


def test_every_citation_is_of_a_notebook_and_used_by_it():
    known = json.loads((NOTEBOOKS / "cited.json").read_text(encoding="utf-8"))
    for number, citations in known.items():
        (path,) = NOTEBOOKS.glob(f"{number}_*.ipynb")
        text = "\n".join(cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown").replace(",", "")
        for cited, source in citations.items():
            assert re.search(rf"(?<![\d.]){re.escape(cited)}(?!\d)", text), f"{number}: {cited} is in no sentence"
            assert len(source) > 5


@pytest.mark.parametrize("path", FILES, ids=[path.name[:2] for path in FILES])
def test_committed_notebooks_keep_the_rules_that_need_no_run(path):
    made = nbformat.read(path, 4)
    assert build.form_faults(made, path.name) == []
    assert build.sentence_faults(made, build.cited(path.name[:2])) == []
    assert made.metadata["sources_sha256"] == build.sources_sha256(made)
    assert path.stat().st_size <= build.MAX_BYTES


EXPECTED = np.arange(12.0).reshape(3, 4) - 4


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (None, "gap is still open"),
        (..., "gap is still open"),
        ("text", "expected are numbers"),
        (EXPECTED.T, "turned around"),
        (EXPECTED[0], "shape"),
        (-EXPECTED, "wrong sign"),
        (3 * EXPECTED, "3 times"),
        (EXPECTED + 2, "too large by 2"),
        (EXPECTED - 2, "too small by 2"),
        (np.roll(EXPECTED, 1, axis=1), "shifted by one place along axis 1"),
        (np.where(EXPECTED == 3, np.nan, EXPECTED), "NaN"),
        (np.where(EXPECTED == 3, 5, EXPECTED), "at (1, 3): it gives 5"),
        (np.full((1, 1), 7), "shape"),
    ],
)
def test_difference_says_what_is_wrong(found, words):
    assert words in course.difference(found, EXPECTED)


def test_difference_of_single_numbers_is_no_riddle():
    assert course.difference(-1, np.asarray(2)) == "it gives -1, expected is 2"


def test_check_reports_the_case_and_an_exception(capsys):
    assert course.check(lambda x: 2 * x, ((1,), 2), ((3,), 6))
    assert not course.check(lambda x: x / 0, ((1,), 2))
    assert "stops with ZeroDivisionError" in capsys.readouterr().out
    square = np.arange(9.0).reshape(3, 3)
    assert "exchanged" in course.difference(square.T, square)
    assert course.difference(np.float32([1.00001]), np.array([1.0])) is None


def test_photographs_takes_a_folder_of_the_readers(tmp_path):
    shutil.copy(NOTEBOOKS / "images" / "rocket.jpg", tmp_path / "mine.jpg")
    (tmp_path / "notes.txt").write_text("no picture")
    model = course.EfficientNetForImageClassification.from_pretrained("lite0")
    inputs = course.photographs(model, tmp_path)
    assert list(inputs) == [*course.PHOTOS, "mine"]
    np.testing.assert_array_equal(inputs["mine"], inputs["rocket"])
    (tmp_path / "mine.jpg").unlink()
    with pytest.raises(FileNotFoundError, match="no picture in"):
        course.photographs(model, tmp_path)


@pytest.mark.parametrize("task", [course.digit_task(16), course.patch_task(48, count=5)], ids=["digits", "patches"])
def test_a_task_holds_out_pictures_that_nobody_learns_from(task):
    (x, y), (again, _), (asked, right) = task.drawn(3, seed=1), task.drawn(3, seed=2), task.judges()
    assert np.bincount(y).tolist() == [3] * len(task.names)
    assert set(right) == set(y)
    assert not any((one == other).all() for one in asked for other in x)
    assert (x != again).any()
    assert -1 <= x.min() < x.max() <= 1
    for one, label in zip(x, y, strict=True):
        assert any((one == other).all() for other in task.pictures[~task.held_out & (task.labels == label)])


def test_own_task_takes_a_folder_a_class_and_train_and_val_as_they_are(tmp_path):
    for part, names in (("train", ("coffee.png", "chelsea.png")), ("val", ("rocket.jpg",))):
        for label in ("a", "b"):
            (tmp_path / part / label).mkdir(parents=True)
            for name in names:
                shutil.copy(NOTEBOOKS / "images" / name, tmp_path / part / label)
    task = course.own_task(tmp_path, size=32)
    assert task.names == ["a", "b"]
    assert task.pictures.shape == (6, 3, 32, 32)
    assert task.held_out.tolist() == [False] * 4 + [True] * 2
    np.testing.assert_array_equal(task.pictures[4], task.pictures[5])  # the rocket, held out in both
    assert task.drawn(2, seed=0)[1].tolist() == [0, 0, 1, 1]


def test_links_into_the_explorer_lead_to_numbers_that_exist():
    """Each `#layer=...&channel=...&y=...&x=...` of a notebook names an activation and a place in it."""
    texts = {path.name[:2]: [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "markdown"] for path in FILES}
    links = [(number, link) for number, cells in texts.items() for link in re.findall(r"`#(layer=[^`]+)`", "\n".join(cells))]
    assert {number for number, _ in links} >= {"00", "01", "02", "03", "06"}
    shapes = {}
    for name in ("lite0", "b0"):
        network = course.EfficientNetForImageClassification
        model = network.from_pretrained(name) if name == "lite0" else network(EfficientNetConfig.preset(name), seed=0)
        with Trace(model) as trace:
            model(np.zeros((1, 3, 224, 224), np.float32))
        shapes[name] = {layer: array.shape[1:] for layer, array in trace.items()}
    for number, link in links:
        fields = dict(part.split("=") for part in link.split("&"))
        shape = (*shapes["b0" if number == "02" else "lite0"][fields["layer"]], 1, 1)[:3]
        assert all(0 <= int(fields[axis]) < size for axis, size in zip(("channel", "y", "x"), shape, strict=True)), link


def test_untrained_network_is_alive_and_knows_nothing():
    model = course.EfficientNetForImageClassification.from_pretrained("lite0")
    inputs = np.stack(list(course.photographs(model).values()))[:4]
    control = course.untrained(inputs)
    deviations = [state.std() for state in control(inputs, output_hidden_states=True).hidden_states]
    assert 0.3 < min(deviations) < max(deviations) < 5
    assert not any("lite0" in name for name in control.state_dict())
    assert all(
        np.abs(a - b).max() > 0
        for a, b in zip(model.state_dict().values(), control.state_dict().values(), strict=True)
        if a.ndim == 4
    )


def test_untrained_network_may_be_another_one():
    model = course.EfficientNetForImageClassification.from_pretrained("lite0")
    inputs = np.stack(list(course.photographs(model).values()))[:2]
    control = course.untrained(inputs, preset="b0")
    assert len(control.state_dict()) == 360
    deviations = [state.std() for state in control(inputs, output_hidden_states=True).hidden_states]
    assert 0.3 < min(deviations) < max(deviations) < 5


def test_every_photograph_and_figure_has_its_licence_in_the_readme():
    readme = (NOTEBOOKS / "README.md").read_text(encoding="utf-8")
    for picture in (NOTEBOOKS / "images").iterdir():
        assert f"images/{picture.name}" in readme
    for path in FILES:
        assert path.name in readme


def test_glossary_leads_to_notebooks_that_exist():
    glossary = (NOTEBOOKS / "GLOSSARY.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\(([^)]+\.ipynb)\)", glossary))
    assert linked <= {path.name for path in FILES}
    rows = re.findall(r"^\| ([^|]+) \|", glossary, re.MULTILINE)[2:]
    assert rows == sorted(rows, key=str.lower)


def test_the_page_is_read_by_a_browser(tmp_path):
    pytest.importorskip("nbconvert")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no browser is installed")
    assert build.write_page(tmp_path, FILES[:1]) == 0
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000", "--dump-dom"]
    for name, words in (("index.html", "The course"), (FILES[0].stem + ".html", "tiger cat")):
        address = (tmp_path / name).as_uri()
        page = subprocess.run([browser, *options, address], capture_output=True, text=True, timeout=60, check=True).stdout
        assert words in page
        links = re.findall(r'(?:href|src)="(?!https?:|data:|#|mailto:)([^"#]+)', page)
        assert links or name != "index.html"
        missing = [link for link in links if not link.startswith("..") and not (tmp_path / link).exists()]
        assert [link for link in missing if link not in {path.stem + ".html" for path in FILES}] == []


def test_slider_stands_still_without_widgets_and_moves_with_them(monkeypatch):
    calls = []
    monkeypatch.setenv("COURSE_STILL", "1")
    course.slider(lambda rate: calls.append(rate), rate=[1, 2, 3])
    assert calls == [2]
    pytest.importorskip("ipywidgets")
    monkeypatch.delenv("COURSE_STILL")
    import ipywidgets

    moved = []
    monkeypatch.setattr(ipywidgets, "interact", lambda function, **handles: moved.append((function, handles)))
    course.slider(calls.append, object=[1, 2, 3])
    ((function, handles),) = moved
    assert function is not None
    assert handles["object"].options == (1, 2, 3)
    assert handles["object"].value == 2
