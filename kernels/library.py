"""The kernels' machine code: made once for a CPU and a version, kept on disk, loaded in a moment.

Numba has a cache of its own, but it looks only at the file of the function itself, so a change in another kernel's file
would go unnoticed; it fails where the installation is read-only; and it needs Numba imported, which costs half a second
before the first photo. So Numba compiles, and this file keeps: all kernels' code goes through LLVM into one object
file, in the user's cache folder, under a name made of everything that it depends on. Loading needs only llvmlite.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import llvmlite
import llvmlite.binding as llvm

from effnet_np.checkpoints.files import replacing
from effnet_np.kernels.target import CPU_FEATURES, CPU_NAME, TRIPLE

PREFIX = "effnet_np_"
FORWARD, TRAINING = "", "training"  # the parts that are compiled and kept apart: folders of kernels/
_lock = threading.Lock()
_loaded: dict[str, dict[str, int]] = {}  # by part
_engines: list = []  # own the memory of the code
_busy = False  # some thread is inside of LLVM
_forked_while_busy = False  # so LLVM's own locks are held here by a thread that does not exist


def _after_fork() -> None:
    global _lock, _forked_while_busy
    _lock = threading.Lock()  # another thread of the parent may have held it
    _forked_while_busy = _busy


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def cache_folder() -> Path:
    """Where machine code is kept: EFFNET_NP_KERNEL_CACHE, or a folder in the user's cache. OSError where there is no user."""
    chosen = os.environ.get("EFFNET_NP_KERNEL_CACHE")
    if chosen:
        return Path(chosen)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or _home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = _home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or _home() / ".cache"
    return Path(base) / "effnet_np" / "kernels"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError as error:  # no HOME, and no entry for this user, as in some containers
        raise FileNotFoundError("there is no home folder: set EFFNET_NP_KERNEL_CACHE to a folder of your own") from error


def _sources(part: str) -> Iterator[Path]:
    folder = Path(__file__).parent
    return iter([*sorted(folder.glob("*.py")), *(sorted((folder / part).glob("*.py")) if part else [])])


def cache_file(part: str = FORWARD) -> Path:
    """The file of this CPU, this version of the kernels and of the compiler."""
    try:
        numba = metadata.version("numba")
    except metadata.PackageNotFoundError:
        numba = "none"
    digest = hashlib.sha256(f"{numba} {llvmlite.__version__} {TRIPLE} {CPU_NAME} {CPU_FEATURES}".encode())
    for source in _sources(part):
        digest.update(source.read_bytes())
    return cache_folder() / f"{digest.hexdigest()[:32]}.o"


def sources_digest() -> str:
    """Of the kernels' code: what decides, beside the CPU, how weights are packed."""
    return hashlib.sha256(b"".join(source.read_bytes() for source in _sources(FORWARD))).hexdigest()[:32]


def kernels_cached(part: str = FORWARD) -> bool:
    """Whether the machine code for this CPU and version is there, so that `compile` need not make it. Takes milliseconds."""
    return part in _loaded or (not _forked_while_busy and _intact(_kept_bytes(part)))


def _kept_bytes(part: str = FORWARD) -> bytes:
    try:
        file = cache_file(part)
        return file.read_bytes() if file.is_file() else b""  # a pipe would be read for ever
    except OSError:
        return b""


def _machine():
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_triple(TRIPLE)
    return target.create_target_machine(
        cpu=CPU_NAME, features=CPU_FEATURES, opt=3, reloc="default", codemodel="jitdefault", jit=True
    )


def _registered(part: str) -> list:
    """The native functions of a part."""
    from effnet_np.kernels import native, plan, program, resample  # noqa: F401  (they register)

    if part == TRAINING:
        from effnet_np.kernels.training import network, optimize  # noqa: F401

    inside = f"{__package__}.{TRAINING}."
    return [kernel for kernel in native.REGISTRY if kernel.function.__module__.startswith(inside) == (part == TRAINING)]


def _compile(part: str, progress: Callable[[int, int, str], None] | None) -> tuple[bytes, list[str]]:
    """The object file with a part's kernels, and their names. `progress(done, total, name)` is told of each and of the end."""
    from numba import cfunc

    machine = _machine()
    whole = llvm.parse_assembly(f'target triple = "{TRIPLE}"\n')
    registered = _registered(part)
    total = len(registered)
    for number, kernel in enumerate(registered):
        if progress:
            progress(number, total, kernel.name)
        compiled = cfunc(kernel.signature(), error_model="numpy")(kernel.function)
        module = llvm.parse_assembly(compiled.inspect_llvm())
        module.link_in(_entry(kernel, module, compiled.native_name.removeprefix("cfunc.")))
        for function in module.functions:
            if not function.is_declaration:
                function.linkage = "external" if function.name == PREFIX + kernel.name else "internal"
        for variable in module.global_variables:
            if not variable.is_declaration:
                variable.linkage = "internal"
        _remove_unused(module, machine)
        whole.link_in(module)
    if progress:
        progress(total, total, "")
    return machine.emit_object(whole), [kernel.name for kernel in registered]


def _entry(kernel, module, inner: str):
    """A function without Numba's error handling: kernels cannot raise, so what the inner one returns is not looked at."""
    inner_type = str(module.get_function(inner).global_value_type)
    numbers = ["i64"] * kernel.integers + ["float"] * kernel.floats
    given = ", ".join(f"{kind} %a{i}" for i, kind in enumerate(numbers))
    returned = inner_type.split("(")[0].strip()
    text = f"""
    declare {returned} @"{inner}"(ptr, ptr, {", ".join(numbers)})
    define void @{PREFIX}{kernel.name}({given}) {{
        %result = alloca ptr
        %error = alloca ptr
        %status = call {returned} @"{inner}"(ptr %result, ptr %error, {given})
        ret void
    }}"""
    return llvm.parse_assembly(text)


def _remove_unused(module, machine) -> None:
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=0))
    passes = llvm.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    passes.run(module, builder)


def _load(code: bytes) -> dict[str, int]:
    """Addresses by name of the functions in that object file."""
    machine = _machine()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(f'target triple = "{TRIPLE}"\n'), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _engines.append(engine)
    return {name: engine.get_function_address(PREFIX + name) for name in _names(code)}


def _names(code: bytes) -> list[str]:
    """The kernels in a file that `_seal` made."""
    return code[code.rindex(b"\n") + 1 :].decode().split(",")


def addresses(progress: Callable[[int, int, str], None] | None = None, part: str = FORWARD) -> dict[str, int]:
    """The address of each kernel of a part by name: from memory, from disk, or compiled now.

    Warns before it compiles, unless `progress` is told of it, and of a cache that cannot be written. Raises RuntimeError in a
    child process that was forked while another thread of its parent compiled: LLVM cannot be used there.
    """
    global _busy
    with _lock:
        if part not in _loaded:
            if _forked_while_busy:
                raise RuntimeError(
                    "this process was forked while its parent compiled the kernels, and cannot compile or load them: let "
                    "NumPy answer, fork after `effnet_np.compile` has returned, or start processes with 'spawn'"
                )
            _busy = True
            try:
                _loaded[part] = _load(_sealed(part, progress)[32:])
            finally:
                _busy = False
        return _loaded[part]


def _sealed(part: str, progress: Callable[[int, int, str], None] | None) -> bytes:
    """The machine code with its digest: what is kept on disk, or made now and kept."""
    sealed = _kept_bytes(part)
    if not _intact(sealed):
        if progress is None:
            text = (
                "Numba compiles the kernels for this CPU, once, which takes some 20 seconds; `effnet-np warmup` does it ahead"
            )
            warnings.warn(text, stacklevel=5)
        sealed = _seal(*_compile(part, progress))
        _keep(sealed, part)
    return sealed


def _seal(code: bytes, names: list[str]) -> bytes:
    """The object file with the kernels' names at its end and a digest of it all in front: a torn file is noticed."""
    code += b"\n" + ",".join(names).encode()
    return hashlib.sha256(code).digest() + code


def _intact(sealed: bytes) -> bool:
    return len(sealed) > 32 and sealed[:32] == hashlib.sha256(sealed[32:]).digest()


def _keep(sealed: bytes, part: str = FORWARD) -> None:
    try:
        file = cache_file(part)
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary:
            temporary.write_bytes(sealed)
    except OSError as error:
        warnings.warn(
            f"the kernels' machine code cannot be kept ({error}): it will be compiled again in each process. "
            "Set EFFNET_NP_KERNEL_CACHE to a folder that can be written.",
            stacklevel=6,
        )


def function(name: str, integers: int):
    """The kernel of that name for Python to call; the call lets other Python threads run."""
    return ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * integers)(addresses()[name])
