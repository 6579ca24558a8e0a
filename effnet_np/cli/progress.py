"""Answers counted on stderr where a person looks at it: by tqdm's bar if that is installed, else in a line."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

EVERY = 0.1  # seconds between two looks of the line


class Progress:
    """`total` is None where nobody knows it before the end."""

    def __init__(self, total: int | None):
        self.total, self.done, self.began, self.last = total, 0, time.monotonic(), 0.0
        self.shown = total != 1 and sys.stderr.isatty()
        self.bar: Any = None
        if self.shown:
            try:
                from tqdm import tqdm

                self.bar = tqdm(total=total, unit="picture", file=sys.stderr)
            except ImportError:
                self._show()

    @contextmanager
    def answer(self, prints: bool) -> Iterator[None]:
        """An answer that `prints` is printed inside of this: the bar makes place for it, and counts it."""
        if self.bar is not None and prints:
            with self.bar.external_write_mode(file=sys.stdout):
                yield
        elif self.shown and prints:
            print("\r" + " " * 78, end="\r", file=sys.stderr, flush=True)
            yield
        else:
            yield
        self.done += 1
        if self.bar is not None:
            self.bar.update()
        elif prints or time.monotonic() - self.last > EVERY:
            self._show()

    def pass_over(self) -> None:
        """One of the total that is not to be done: it was done before."""
        if self.total is not None:
            self.total -= 1
            if self.bar is not None:
                self.bar.total -= 1

    def _show(self) -> None:
        if self.shown and self.bar is None:
            self.last = time.monotonic()
            print(f"\r{self._text()}", end="", file=sys.stderr, flush=True)

    def _text(self) -> str:
        rate = self.done / max(self.seconds, 1e-9)
        of = "" if self.total is None else f" of {self.total}"
        text = f"{self.done}{of} pictures, {rate:.1f} a second"
        if self.total is None or not self.done:
            return text
        left = round((self.total - self.done) / rate)
        return f"{text}, {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        elif self.shown:
            self._show()
            print(file=sys.stderr)
