"""The package as a whole: what it imports, what it installs, what its text promises."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from effnet_np.hf_config import EfficientNetConfig
from effnet_np.presets import PRESETS
from effnet_np.weights import manifest

from helpers import CHELSEA

ROOT = Path(__file__).parent.parent
OPTIONAL = (
    "numba",
    "dask",
    "distributed",
    "torch",
    "transformers",
    "matplotlib",
    "huggingface_hub",
    "tqdm",
    "tensorflow",
    "jax",
    "safetensors.torch",
)


def python(code, **options):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **options)


def test_import_and_classify_without_anything_optional():
    """The optional packages are installed here, so they are made impossible to import, and must not be missed."""
    code = f"""
import sys
for name in {OPTIONAL!r}:
    sys.modules[name] = None
import effnet_np
print(effnet_np.classify({str(CHELSEA)!r})[0]["label"])
"""
    done = python(code)
    assert done.stdout == "tiger cat\n", done.stderr


def test_import_does_not_load_what_it_may_not_need():
    done = python(
        "import sys, effnet_np; print(sorted(set(sys.modules) & {'PIL', 'h5py', 'safetensors', 'numba', 'torch', 'tqdm'}))"
    )
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("folder", [ROOT, ROOT / "notebooks"], ids=["root", "notebooks"])
@pytest.mark.parametrize("without", ["installation", "editable installation"])
def test_a_clone_can_be_imported_as_it_stands(folder, without, tmp_path, installed):
    """Nothing installed (the finder of `pip install -e` is taken away), and a copy installed beside: the clone's own code."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]"
    )
    paths = [str(tmp_path)] + ([str(installed)] if without == "editable installation" else [])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    code = "import effnet_np.kernels, effnet_np.weights, effnet_np; print(effnet_np.__file__); effnet_np.weights.manifest()"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == str(ROOT / "effnet_np" / "__init__.py"), done.stderr
    command = [sys.executable, "-m", "effnet_np", "classify", str(CHELSEA), "--top-k", "1"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert "tiger cat" in done.stdout, done.stderr


def test_no_framework_is_imported_at_module_level():
    for folder in ("effnet_np", "kernels", "weights"):
        for path in (ROOT / folder).glob("**/*.py"):
            for node in ast.parse(path.read_text()).body:
                names = (
                    [alias.name for alias in node.names]
                    if isinstance(node, ast.Import)
                    else [getattr(node, "module", "") or ""]
                )
                assert not {name.split(".")[0] for name in names} & {"torch", "transformers", "tensorflow", "matplotlib"}, path


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """An installed copy, in which kernels/ and weights/ stand where they belong: inside effnet_np."""
    folder = tmp_path_factory.mktemp("installed")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder), str(ROOT)]
    subprocess.run(install, check=True, capture_output=True, timeout=300)
    return folder


def run_in(folder, *command):
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, cwd=folder, env=environment)


def test_what_is_installed(installed):
    for name in (
        "py.typed",
        "kernels/__init__.py",
        "kernels/versions/__main__.py",
        "weights/imagenet-1k-id2label.json",
        "weights/manifest.json",
        "weights/foreign.py",
        "cli/classify.py",
        "explorer/static/index.html",
    ):
        assert (installed / "effnet_np" / name).is_file(), name
    assert not (installed / "kernels").exists(), "a top-level package named kernels would shadow another project's"


def test_import_contract(installed):
    code = "from importlinter.cli import lint_imports_command as run; run()"
    done = run_in(installed, "-c", code, "--config", ROOT / "setup.cfg")
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 broken" in done.stdout


def test_types(installed, tmp_path):
    done = run_in(installed, "-m", "mypy", "--config-file", ROOT / "setup.cfg", "--cache-dir", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_reading_path_stays_short():
    """Architecture, operations, module, layers and model are to be read in an evening: at most 800 lines that are not blank."""
    names = ("architecture", "ops", "module", "layers", "model")
    lines = [line for name in names for line in (ROOT / "effnet_np" / f"{name}.py").read_text().splitlines() if line.strip()]
    assert len(lines) <= 800


def test_the_manifest_agrees_with_the_presets():
    for name, entry in manifest().items():
        assert entry["image_size"] == EfficientNetConfig.preset(name).image_size
        assert entry["license"] == "Apache-2.0"
        assert 70 < entry["top1"] < 90
    assert set(manifest()) <= set(PRESETS)
