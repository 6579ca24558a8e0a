"""Run the course. The .ipynb files are the one source: edit them in Jupyter, run this, commit what it writes.

    python notebooks/build.py                execute all and write them back, with their outputs and the README's pictures
    python notebooks/build.py 03 06          only these
    python notebooks/build.py --check        execute all, write nothing, fail where something is not as it should be

The solutions of the exercises, folded away in Markdown, are executed too, after the last cell, and left out of the file.
A notebook is refused if a cell or a solution fails or warns, if a section neither draws nor asserts, if it has fewer than
MIN_FIGURES figures or MIN_ASSERTIONS assertions, if it does not open and close as the course does, or is too large. `--check`
also refuses a file whose outputs are not those of its cells, or whose figures do not all come out again.

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
import re
import sys
import time
from pathlib import Path

import nbformat
import PIL.Image
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

FOLDER = Path(__file__).parent
COVERS = FOLDER / "covers"
MAX_BYTES = 1_500_000
MIN_FIGURES, MIN_ASSERTIONS = 3, 6
TIMEOUT = 300  # seconds a cell
SOLUTION = re.compile(r"<details>.*?</details>", re.DOTALL)
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(description="Execute the course's notebooks.")
    parser.add_argument("numbers", nargs="*", help="which: 00 03 (default: all)")
    parser.add_argument("--check", action="store_true", help="write nothing, fail where something is not as it should be")
    options = parser.parse_args()
    paths = [
        path for path in sorted(FOLDER.glob("[0-9][0-9]_*.ipynb")) if not options.numbers or path.name[:2] in options.numbers
    ]
    if not paths:
        parser.error(f"there is no notebook {' '.join(options.numbers)} in {FOLDER}")
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
    faults = form_faults(notebook)
    try:
        execute(notebook)
    except CellExecutionError as error:
        return [*faults, f"a cell failed:\n{error}"]
    faults += output_faults(notebook)
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
    solutions = [code for cell in notebook.cells if cell.cell_type == "markdown" for code in solutions_in(cell.source)]
    notebook.cells += [nbformat.v4.new_code_cell(code) for code in solutions]
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    NotebookClient(notebook, timeout=TIMEOUT, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}).execute()
    del notebook.cells[count:]


def solutions_in(markdown: str) -> list[str]:
    return [code for folded in SOLUTION.findall(markdown) for code in PYTHON.findall(folded)]


# -- what must be there -----------------------------------------------------------------------------------------------


def form_faults(notebook) -> list[str]:
    """What is wrong with the text: opening, exercises, sections without proof, too few assertions."""
    faults = []
    first, last = notebook.cells[0].source, notebook.cells[-1].source
    if not first.startswith("# ") or "What you will know" not in first:
        faults.append("its first cell must be a title and what you will know at the end")
    folded = len(SOLUTION.findall(last))
    if "## Exercises" not in last or not 2 <= folded <= 3 or len(solutions_in(last)) < folded:
        faults.append("its last cell must be '## Exercises' with two or three <details>, each with a solution in Python")
    asserted = sum(map(assertions, code_cells(notebook)))
    if asserted < MIN_ASSERTIONS:
        faults.append(f"it has {asserted} assertions, expected at least {MIN_ASSERTIONS}")
    if not any("cover" in tags(cell) for cell in notebook.cells):
        faults.append("no cell is tagged 'cover', so the README has no picture of it")
    return faults


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
    tree = ast.parse("\n".join(line for line in cell.source.splitlines() if line[:1] not in ("%", "!")))
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    named = sum(getattr(function, "attr", "").startswith("assert_") for function in calls)
    return named + sum(isinstance(node, ast.Assert) for node in ast.walk(tree))


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


if __name__ == "__main__":
    sys.exit(main())
