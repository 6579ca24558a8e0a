"""What makes a function of ops.py a step that a tape can hear of (training/tape.py). While none is open, it adds nothing."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable

listener = threading.local()  # `listener.tape` is what this thread's operations are told to, or absent


def operation(function: Callable) -> Callable:
    """The same function; while a tape is open in this thread, the tape runs it and writes it down."""

    @functools.wraps(function)
    def step(*arguments, **options):
        tape = getattr(listener, "tape", None)
        return function(*arguments, **options) if tape is None else tape.run(function, arguments, options)

    return step
