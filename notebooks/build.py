"""Run the course. The .ipynb files are the one source: edit them in Jupyter, run this, commit what it writes.

    python notebooks/build.py                execute all and write them back, with their outputs and the README's pictures
    python notebooks/build.py 03 06          only these
    python notebooks/build.py --check        execute all, write nothing, fail where something is not as it should be

    python notebooks/build.py --page site    the course as a page to read: HTML of what is committed, nothing executed

Solutions and answers, folded away in Markdown, are executed too, after the last cell, and left out of the file. A notebook is
refused if a cell or a solution fails or warns, if a section neither draws nor asserts, if it has too few figures, assertions,
predictions or exercises, a cell of MAX_LINES lines or more, or no map of where it is, if it does not open and close as the
course does, or is too large. And for its sentences: a number in a text that follows a cell must be one that the code printed or
asserted, or stand in cited.json with its source. `--check` also refuses a file whose outputs are not those of its cells, or
whose figures do not all come out again.

Needs the extra `notebooks`. Cells tagged `torch` may draw nothing where torch is not installed; the cell tagged `cover` has
the picture for the README.
"""

import argparse
import ast
import base64
import copy
import hashlib
import importlib.util
import io
import json
import os
import re
import sys
import time
from pathlib import Path

import nbformat
import PIL.Image
from course import BRANCH, REPOSITORY
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError

from effnet_np.cli import main as warmup

FOLDER = Path(__file__).parent
COVERS = FOLDER / "covers"
MAX_BYTES = 1_500_000
MAX_LINES = 20  # of code in a cell, blank lines not counted
MIN_FIGURES, MIN_ASSERTIONS = 3, 6
TIMEOUT = 300  # seconds a cell
SOLUTION = re.compile(r"<details>.*?</details>", re.DOTALL)
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(description="Execute the course's notebooks.")
    parser.add_argument("numbers", nargs="*", help="which: 00 03 (default: all)")
    parser.add_argument("--check", action="store_true", help="write nothing, fail where something is not as it should be")
    parser.add_argument("--page", type=Path, metavar="FOLDER", help="write the course as HTML into that folder")
    options = parser.parse_args()
    paths = [
        path for path in sorted(FOLDER.glob("[0-9][0-9]_*.ipynb")) if not options.numbers or path.name[:2] in options.numbers
    ]
    if not paths:
        parser.error(f"there is no notebook {' '.join(options.numbers)} in {FOLDER}")
    if options.page:
        return write_page(options.page, paths)
    warmup(["warmup", "--training"])  # the kernels, once, so that no notebook waits for them or warns
    total, failed = 0.0, 0
    for path in paths:
        start = time.perf_counter()
        faults = build(path, options.check)
        seconds = time.perf_counter() - start
        total += seconds
        failed += bool(faults)
        print(
            f"{path.name:45} {seconds:6.1f} s {path.stat().st_size / 1000:8.0f} kB  {'FAILED' if faults else 'ok'}", flush=True
        )
        for fault in faults:
            print(f"    {fault}", flush=True)
    print(f"{len(paths)} notebooks, {failed} failed, {total:.0f} s")
    return 1 if failed else 0


def build(path: Path, check: bool) -> list[str]:
    """Execute one notebook, write it unless `check`, and give what is wrong with it."""
    notebook = nbformat.read(path, as_version=4)
    before = copy.deepcopy(notebook)
    if not check:
        notebook.cells[0].source = with_links(notebook.cells[0].source, path.name)
    faults = form_faults(notebook, path.name)
    try:
        execute(notebook)
    except (CellExecutionError, CellTimeoutError) as error:
        return [*faults, f"a cell failed:\n{error}"]
    faults += output_faults(notebook)
    faults += sentence_faults(before if check else notebook, cited(path.name[:2]))
    if check:
        return faults + stale_faults(path, before, notebook)
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}, "sources_sha256": sources_sha256(notebook)}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day, which would change every file at every run
    nbformat.validate(notebook)
    nbformat.write(notebook, path)
    COVERS.mkdir(exist_ok=True)
    for cell in notebook.cells:
        if "cover" in tags(cell) and figures(cell):
            picture = PIL.Image.open(io.BytesIO(base64.b64decode(figures(cell)[0]))).convert("RGB")
            picture.thumbnail((640, 400))
            picture.save(COVERS / f"{path.name[:2]}.png", optimize=True)
    if path.stat().st_size > MAX_BYTES:
        faults.append(f"it has {path.stat().st_size:,} bytes, allowed are {MAX_BYTES:,}: fewer or smaller figures")
    return faults


KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def execute(notebook) -> None:
    """Run all cells in order, then the solutions; the outputs of the cells stay in `notebook`."""
    count = len(notebook.cells)
    os.environ["COURSE_STILL"] = "1"  # sliders stand still
    solutions = [code for cell in notebook.cells if cell.cell_type == "markdown" for code in solutions_in(cell.source)]
    notebook.cells += [nbformat.v4.new_code_cell(code) for code in solutions]
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    NotebookClient(notebook, timeout=TIMEOUT, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}).execute()
    del notebook.cells[count:]


def solutions_in(markdown: str) -> list[str]:
    return [code for folded in SOLUTION.findall(markdown) for code in PYTHON.findall(folded)]


# -- what must be there -----------------------------------------------------------------------------------------------


def form_faults(notebook, name: str) -> list[str]:
    """What is wrong with the text: opening and links, exercises, long cells, too few assertions."""
    faults = []
    first, last = notebook.cells[0].source, notebook.cells[-1].source
    if not first.startswith("# ") or "What you will know" not in first:
        faults.append("its first cell must be a title and what you will know at the end")
    if with_links(first, name) != first:
        faults.append("the links in its first cell are not those of REPOSITORY in course.py: run build.py without --check")
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    if "## Exercises" not in last or not solutions_in(last):
        faults.append("its last cell must be '## Exercises', with a solution in Python in <details>")
    earlier = [text for text in texts[:-1] if solutions_in(text)]
    if not any("<summary>Answer" in text for text in earlier):
        faults.append("nothing is to be predicted: no <details> with <summary>Answer</summary> and Python before the last cell")
    if not any("<summary>Solution" in text for text in earlier):
        faults.append("every exercise stands at the end: one must stand where its question arises")
    for folded in (folded for text in texts for folded in SOLUTION.findall(text)):
        if not PYTHON.search(folded):
            faults.append(f"a folded text has no Python that could fail: {folded[:60]!r}")
    for cell in code_cells(notebook):
        lines = sum(bool(line.strip()) for line in cell.source.splitlines())
        if lines >= MAX_LINES:
            start = cell.source.strip().splitlines()[0]
            faults.append(f"the cell '{start}' has {lines} lines, allowed are {MAX_LINES - 1}: drawing belongs into draw.py")
    source = "\n".join(cell.source for cell in code_cells(notebook))
    for needed, why in (("draw.here(", "a map of where it is"), ("check(", "a function with a gap and its test")):
        if needed not in source:
            faults.append(f"it lacks {why}: {needed}...)")
    asserted = sum(map(assertions, code_cells(notebook)))
    if asserted < MIN_ASSERTIONS:
        faults.append(f"it has {asserted} assertions, expected at least {MIN_ASSERTIONS}")
    if not any("cover" in tags(cell) for cell in notebook.cells):
        faults.append("no cell is tagged 'cover', so the README has no picture of it")
    return faults


def with_links(first: str, name: str) -> str:
    """The first cell with the two links that open the notebook ready to run, in the line below its title."""
    title, *rest = first.split("\n")
    rest = [line for line in rest if not line.startswith("[Run it on ")]
    binder = f"https://mybinder.org/v2/gh/{REPOSITORY}/{BRANCH}?labpath=notebooks%2F{name}"
    colab = f"https://colab.research.google.com/github/{REPOSITORY}/blob/{BRANCH}/notebooks/{name}"
    while rest and not rest[0]:
        rest.pop(0)
    return "\n".join([title, "", f"[Run it on Binder]({binder}) or [on Colab]({colab}).", "", *rest])


# -- sentences --------------------------------------------------------------------------------------------------------

NUMBER = r"\d[\d,]*(?:\.\d+)?"
# What is no result: code, formulas, folded answers, addresses, headings, years, shapes such as 5 × 5, and places in the course.
NOT_PROSE = re.compile(
    r"<details>.*?</details>|```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|\]\([^)]*\)|https?://\S+|arXiv \S+|^#.*?$|"
    r"\b(?:1[89]|20)\d\d\b|"
    rf"{NUMBER}(?: ?[×x] ?{NUMBER})+|"
    r"(?i:notebooks?|blocks?|exercises?|sections?|channels?|stages?|tables?|figures?|steps?|class|versions?|python|features?)"
    r" \d+(?:(?:,| and| to|, and) \d+)*",
    re.DOTALL | re.MULTILINE,
)


def sentence_faults(notebook, known: dict[str, str]) -> list[str]:
    """Numbers in the texts after cells that no cell before them printed or asserts, and that are not cited."""
    faults, held = [], {value(number) for number in known}
    previous = None
    for cell in notebook.cells:
        if cell.cell_type == "code":
            printed = "\n".join(text_of(output) for output in cell.get("outputs", []))
            held |= {value(number) for number in re.findall(NUMBER, printed)} | asserted_numbers(cell)
        elif previous is not None and previous.cell_type == "code":
            text = re.split(r"^## ", cell.source, maxsplit=1, flags=re.MULTILINE)[0]
            for number in re.findall(rf"(?<![\w.,-]){NUMBER}(?![\w])", NOT_PROSE.sub(" ", text)):
                if value(number) not in held:
                    faults.append(f"no cell before it computes or asserts the number {number} in: {text.strip()[:70]!r}...")
        previous = cell
    return faults


def cited(number: str) -> dict[str, str]:
    """{number: source} for one notebook."""
    return json.loads((FOLDER / "cited.json").read_text(encoding="utf-8")).get(number, {})


def value(number: str) -> float:
    return float(number.replace(",", ""))


def text_of(output) -> str:
    data = output.get("data", {})
    return output.get("text", "") + data.get("text/markdown", "") + data.get("text/plain", "")


def asserted_numbers(cell) -> set[float]:
    """The numbers that stand in a cell's assertions, and a hundred times those below 1, which a text gives in percent."""
    numbers = [
        float(node.value)
        for statement in ast.walk(parsed(cell))
        if isinstance(statement, ast.Assert)
        for node in ast.walk(statement)
        if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and not isinstance(node.value, bool)
    ]
    return {*numbers, *(round(100 * number, 6) for number in numbers if abs(number) < 1)}


def output_faults(notebook) -> list[str]:
    """What is wrong with what came out: warnings, too few figures, a section that neither draws nor asserts."""
    faults = []
    drawn = sum(len(figures(cell)) for cell in code_cells(notebook))
    if drawn < MIN_FIGURES:
        faults.append(f"it has {drawn} figures, expected at least {MIN_FIGURES}")
    for title, cells in sections(notebook):
        code = [cell for cell in cells if cell.cell_type == "code"]
        optional = code and all("torch" in tags(cell) for cell in code)
        if code and not optional and not any(assertions(cell) or figures(cell) for cell in code):
            faults.append(f"section '{title}' has code, but neither an assertion nor a figure")
    for cell in code_cells(notebook):
        for output in cell.outputs:
            if output.get("name") == "stderr":
                faults.append(f"a cell warns: {output['text'].strip()[:300]}")
            if "cover" in tags(cell) and not figures(cell) and not may_skip(cell):
                faults.append("the cell tagged 'cover' draws nothing")
    return faults


def stale_faults(path: Path, committed, executed) -> list[str]:
    """Where the committed file is not what its own cells give."""
    again = f"run `python notebooks/build.py {path.name[:2]}` and commit the result"
    if committed.metadata.get("sources_sha256") != sources_sha256(committed):
        return [f"its cells have changed since it was executed: {again}"]
    faults = []
    if [cell.execution_count for cell in code_cells(committed)] != list(range(1, len(code_cells(committed)) + 1)):
        faults.append(f"its cells were not executed from top to bottom: {again}")
    for old, new in zip(code_cells(committed), code_cells(executed), strict=True):
        if len(figures(old)) != len(figures(new)) and not may_skip(new):
            start = new.source.strip().splitlines()[0]
            faults.append(f"the cell '{start}' drew {len(figures(new))} figures, committed are {len(figures(old))}")
    if path.stat().st_size > MAX_BYTES:
        faults.append(f"it has {path.stat().st_size:,} bytes, allowed are {MAX_BYTES:,}")
    number = path.name[:2]
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    if path.name not in readme or f"covers/{number}.png" not in readme or not (COVERS / f"{number}.png").is_file():
        faults.append(f"README.md must name {path.name} and show covers/{number}.png")
    return faults


# -- reading a notebook -----------------------------------------------------------------------------------------------


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])


def figures(cell) -> list[str]:
    """The pictures that a cell has drawn, in base64."""
    data = [output.get("data", {}) for output in cell.get("outputs", [])]
    return [entry[kind] for entry in data for kind in ("image/png", "image/jpeg") if kind in entry]


def assertions(cell) -> int:
    """`assert` statements, and calls of numpy.testing's assert_...; IPython's own lines (% and !) do not count."""
    tree = parsed(cell)
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    named = sum(getattr(function, "attr", "").startswith("assert_") for function in calls)
    return named + sum(isinstance(node, ast.Assert) for node in ast.walk(tree))


def parsed(cell) -> ast.AST:
    return ast.parse("\n".join(line for line in cell.source.splitlines() if line[:1] not in ("%", "!")))


def sections(notebook) -> list[tuple[str, list]]:
    """(title, cells) for each `## ` heading."""
    found: list[tuple[str, list]] = []
    for cell in notebook.cells:
        heading = re.search(r"^## (.+)$", cell.source, re.MULTILINE) if cell.cell_type == "markdown" else None
        if heading:
            found.append((heading[1], []))
        elif found:
            found[-1][1].append(cell)
    return found


def may_skip(cell) -> bool:
    return "torch" in tags(cell) and importlib.util.find_spec("torch") is None


def sources_sha256(notebook) -> str:
    return hashlib.sha256("\0".join(f"{cell.cell_type}\n{cell.source}" for cell in notebook.cells).encode()).hexdigest()


# -- the page ---------------------------------------------------------------------------------------------------------


def write_page(folder: Path, paths: list[Path]) -> int:
    """HTML of README, glossary and notebooks as they are committed; links between them lead to the pages."""
    import nbconvert

    folder.mkdir(parents=True, exist_ok=True)
    exporter = nbconvert.HTMLExporter(sanitize_html=False)
    texts = [FOLDER / "README.md", FOLDER / "GLOSSARY.md"]
    for path in [*texts, *paths]:
        if path.suffix == ".md":
            notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(path.read_text(encoding="utf-8"))])
        else:
            notebook = nbformat.read(path, as_version=4)
        body, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": path.stem}})
        body = re.sub(r'href="(\w+)\.ipynb', r'href="\1.html', body)
        body = body.replace('href="README.md', 'href="index.html').replace('href="GLOSSARY.md', 'href="GLOSSARY.html')
        (folder / ("index.html" if path.name == "README.md" else f"{path.stem}.html")).write_text(body, encoding="utf-8")
    for kind in ("covers", "images"):
        (folder / kind).mkdir(exist_ok=True)
        for picture in (FOLDER / kind).iterdir():
            (folder / kind / picture.name).write_bytes(picture.read_bytes())
    print(f"{folder}/index.html and {len(paths)} notebooks")
    return 0


if __name__ == "__main__":
    sys.exit(main())
