"""models() and `effnet-np models`: what has a short name, and what of it is on this machine."""

import json
import subprocess
import sys

import pytest

import effnet_np
from effnet_np.checkpoints import hub


def test_every_short_name_with_its_facts():
    found = {entry.name: entry for entry in effnet_np.models()}
    assert list(found) == [f"b{number}" for number in range(8)] + ["lite0", "lite1", "lite2"]
    b0, lite2 = found["b0"], found["lite2"]
    assert (b0.source, b0.kind, b0.image_size, b0.top1) == ("google/efficientnet-b0", "hub", 224, 77.1)
    assert (b0.parameters, b0.license) == (5_288_548, "Apache-2.0")
    model = effnet_np.EfficientNetForImageClassification.from_pretrained("lite2")
    assert lite2.parameters == model.num_parameters()
    assert (lite2.top1, lite2.here) == (77.6, True)
    numbers = sum(array.size for name, array in model.state_dict().items() if not name.endswith("num_batches_tracked"))
    assert lite2.megabytes == pytest.approx(4 * numbers / 1e6, abs=0.1)


def test_what_is_not_here(monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "files", lambda name: (_ for _ in ()).throw(ModuleNotFoundError(name)))
    monkeypatch.setattr(hub, "_download", lambda *_: (_ for _ in ()).throw(FileNotFoundError("not in the cache")))
    assert not any(entry.here for entry in effnet_np.models())
    monkeypatch.setattr(hub, "_download", lambda repo_id, weights, options: tmp_path if options["local_files_only"] else None)
    assert [entry.name for entry in effnet_np.models() if entry.here] == [f"b{number}" for number in range(8)]


def test_the_command():
    done = subprocess.run([sys.executable, "-m", "effnet_np", "models"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "lite2    260       6.1M  77.6%  Apache-2.0  yes" in done.stdout
    done = subprocess.run([sys.executable, "-m", "effnet_np", "models", "--json"], capture_output=True, text=True)
    assert [entry["name"] for entry in json.loads(done.stdout)][-1] == "lite2"
