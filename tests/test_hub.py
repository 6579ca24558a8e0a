"""The hub: a cache folder that looks exactly like huggingface_hub's, and a server that answers as the hub does."""

import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import transformers

import effnet_np
from effnet_np.checkpoints import hub
from effnet_np.images.processor import EfficientNetImageProcessor

from helpers import CHELSEA, hf_model, tiny_config

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The files of google/efficientnet-b0 on the hub, in small."""
    folder = tmp_path_factory.mktemp("repository")
    hf_model(tiny_config(num_labels=1000)).save_pretrained(folder)
    EfficientNetImageProcessor.preset("b0").save_pretrained(folder)
    return folder


@pytest.fixture
def cache(files, tmp_path, monkeypatch):
    """~/.cache/huggingface/hub after a download, and no network."""
    repository = tmp_path / "hub" / "models--google--efficientnet-b0"
    (repository / "refs").mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "refs" / "main").write_text(REVISION)
    snapshot = repository / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    for file in files.iterdir():
        blob = repository / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_from_the_cache(cache, files):
    for source in ("google/efficientnet-b0", "b0"):
        model = effnet_np.EfficientNetForImageClassification.from_pretrained(source, cache_dir=cache, local_files_only=True)
        assert model.num_labels == 1000
        assert model.image_processor == EfficientNetImageProcessor.preset("b0")
    for revision in ("main", REVISION):
        config = effnet_np.EfficientNetConfig.from_pretrained("b0", cache_dir=cache, revision=revision, dropout_rate=0.1)
        assert (config.num_labels, config.dropout_rate) == (1000, 0.1)
    assert EfficientNetImageProcessor.from_pretrained("b0", cache_dir=cache).size == {"height": 224, "width": 224}
    assert effnet_np.classify(CHELSEA, model="b0", top_k=2, cache_dir=cache) == effnet_np.classify(
        CHELSEA, model=files, top_k=2
    )
    assert hub.resolve("b0", weights=True, cache_dir=cache).name == REVISION


def test_export_knows_the_revision(cache, tmp_path):
    import h5py

    from effnet_np.cli.export import export

    export("b0", tmp_path / "b0.h5", cache_dir=cache)
    with h5py.File(tmp_path / "b0.h5") as file:
        assert (file.attrs["source"], file.attrs["revision"]) == ("b0", REVISION)


def test_what_is_not_cached_names_the_command_that_fetches_it(cache):
    with pytest.raises(
        FileNotFoundError,
        match="config.json of google/efficientnet-b5 is not in the cache.*hf download google/efficientnet-b5$",
    ):
        effnet_np.EfficientNetForImageClassification.from_pretrained("b5", cache_dir=cache)
    with pytest.raises(FileNotFoundError, match="hf download google/efficientnet-b0 --revision v9"):
        effnet_np.EfficientNetForImageClassification.from_pretrained("b0", revision="v9", cache_dir=cache)
    for name in ("model.safetensors", "preprocessor_config.json"):
        next(cache.glob(f"**/snapshots/*/{name}")).unlink()
    assert effnet_np.EfficientNetConfig.from_pretrained("b0", cache_dir=cache).num_labels == 1000
    with pytest.raises(FileNotFoundError, match="any of model.safetensors, .* is not in the cache"):
        effnet_np.EfficientNetForImageClassification.from_pretrained("b0", cache_dir=cache)


def test_names_that_mean_nothing():
    for name in ("b8", "efficientnet-b0", "a/b/c", "photo.h5", "some/model.h5", "../x"):
        with pytest.raises(
            FileNotFoundError, match="known short names are b0, .*lite2; a hub id looks like google/efficientnet-b0"
        ):
            hub.resolve(name)


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        ImportError, match=r"to fetch google/efficientnet-b0 from the hub, install the extra: pip install 'effnet_np\[hub\]'"
    ):
        effnet_np.EfficientNetForImageClassification.from_pretrained("b0")
    assert hub.resolve("lite0").is_file()  # the embedded weights need no hub


class Hub(http.server.BaseHTTPRequestHandler):
    """`/<owner>/<model>/resolve/<revision>/<file>` as huggingface.co answers it."""

    repositories: dict[str, Path]
    asked: list[str]

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        owner, model, _, revision, name = self.path.lstrip("/").split("/", 4)
        folder = self.repositories.get(f"{owner}/{model}")
        if f"{owner}/{model}" in self.repositories and folder is None:
            self.send_response(503)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if folder == "breaks off":
            self.send_response(200)
            self.send_header("X-Repo-Commit", REVISION)
            self.send_header("ETag", '"abc"')
            self.send_header("Content-Length", "5000")
            self.end_headers()
            self.close_connection = True
            if body:
                self.wfile.write(b"{")
            return
        if body:
            self.asked.append(name)
        error = None if folder else "RepoNotFound"
        error = error or (None if revision in ("main", REVISION) else "RevisionNotFound")
        error = error or (None if (folder / name).is_file() else "EntryNotFound")
        data = b"" if error else (folder / name).read_bytes()
        self.send_response(404 if error else 200)
        if error:
            self.send_header("X-Error-Code", error)
        else:
            self.send_header("X-Repo-Commit", REVISION)
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(files, tmp_path):
    asked: list[str] = []
    repositories = {"google/efficientnet-b0": files}
    handler = type("Handler", (Hub,), {"repositories": repositories, "asked": asked})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {key: value for key, value in os.environ.items() if "proxy" not in key.lower() and not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "home")}
    environment |= {"HF_HUB_DISABLE_XET": "1", "TQDM_POSITION": "-1"}  # the last shows progress bars without a terminal

    def run(code):
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120)

    yield run, asked, repositories
    server.shutdown()


LOAD = """
import effnet_np
model = effnet_np.EfficientNetForImageClassification.from_pretrained({!r})
print(model.num_labels, model.image_processor.size)
"""


def test_download_then_cache(server, files):
    run, asked, _ = server
    done = run(LOAD.format("b0"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1000 {'height': 224")
    assert "model.safetensors: 100%" in done.stderr  # huggingface_hub's progress bar
    assert sorted(asked) == ["config.json", "model.safetensors", "preprocessor_config.json"]
    asked.clear()
    assert run(LOAD.format("google/efficientnet-b0")).returncode == 0
    assert asked == []  # all of it from the cache


def test_only_descriptions_are_fetched_for_a_configuration(server):
    run, asked, _ = server
    done = run("import effnet_np; print(effnet_np.EfficientNetConfig.from_pretrained('b0').num_labels)")
    assert done.stdout == "1000\n", done.stderr
    assert sorted(asked) == ["config.json", "preprocessor_config.json"]


def test_shards_are_fetched_by_their_index(server, files, tmp_path):
    run, asked, repositories = server
    theirs = transformers.EfficientNetForImageClassification.from_pretrained(files)
    theirs.save_pretrained(tmp_path / "sharded", max_shard_size="500KB")
    EfficientNetImageProcessor.preset("b0").save_pretrained(tmp_path / "sharded")
    index = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text())
    shards = set(index["weight_map"].values())
    assert len(shards) > 1
    repositories["google/efficientnet-b0"] = tmp_path / "sharded"
    done = run(LOAD.format("b0"))
    assert done.returncode == 0, done.stderr
    assert shards <= set(asked)


def test_a_hub_that_cannot_be_reached_is_one_sentence(server, tmp_path):
    """Not two lines for each of huggingface_hub's five attempts: one when it begins to try again, one when it gives up."""
    run, _, repositories = server
    repositories["google/efficientnet-b2"] = None  # answered by HTTP error 503
    load = "import time, effnet_np; time.sleep = lambda seconds: None\n" + (
        "import warnings; warnings.formatwarning = lambda message, *_: f'warning: {message}\\n'\n"
        "try: effnet_np.EfficientNetForImageClassification.from_pretrained('b2')\n"
        "except OSError as error: print(f'{type(error).__name__}: {error}')"
    )
    nowhere = "import os; os.environ['HF_ENDPOINT'] = 'http://127.0.0.1:9'\n"
    for code, why in ((load, "HTTP error 503"), (nowhere + load, "no connection")):
        done = run(code)
        assert done.stderr == f"warning: the hub cannot be reached ({why}); trying again for half a minute\n"
        assert re.fullmatch(
            "FileNotFoundError: config.json of google/efficientnet-b2 is not in the cache .* the hub cannot be "
            "asked for it .no connection, .*hf download google/efficientnet-b2\n",
            done.stdout,
        )


def test_a_download_that_breaks_off(server, files):
    run, _, repositories = server
    repositories["google/efficientnet-b3"] = "breaks off"
    done = run("import effnet_np; effnet_np.EfficientNetConfig.from_pretrained('b3')")
    assert "ConnectionError: the hub did not give config.json of google/efficientnet-b3 (" in done.stderr.splitlines()[-1]
    assert "try again later" in done.stderr.splitlines()[-1]


def test_unknown_model_and_revision(server):
    run, _, _ = server
    done = run(LOAD.format("google/efficientnet-b1"))
    assert (
        "FileNotFoundError: the hub has no model google/efficientnet-b1, or it is private: check name and token" in done.stderr
    )
    done = run("import effnet_np; effnet_np.EfficientNetConfig.from_pretrained('b0', revision='v9')")
    assert "the hub has no model google/efficientnet-b0 at revision 'v9'" in done.stderr
