"""Files of answers, a record a picture: JSON lines, CSV, Parquet; written as the work goes on, so that a killed run can go on.

A record: "file" (and "file_bytes", its bytes in hexadecimal, where the name is no UTF-8), and "predictions", "embedding" or
"error". Each is written whole, in one go, before the next; what a crash tears is its last line, which `--resume` cuts off.
Parquet cannot grow: until the end the records stand in a file of JSON lines beside it, `<name>.jsonl`. What a file was begun
with is noted (begun.py), and --resume goes on with nothing else.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from effnet_np.checkpoints.files import parse_json, replacing
from effnet_np.cli import begun

SUFFIXES = (".jsonl", ".csv", ".parquet")
KINDS = ("predictions", "embedding")
BLOCK = 1 << 16
ROW_GROUP = 4096  # records of a Parquet file that are in memory at the same time


def record_of(name: str, **fields: Any) -> dict[str, Any]:
    """A picture's record; of a name that is not UTF-8 the bytes, in hexadecimal, too."""
    record: dict[str, Any] = {"file": text(name)}
    if record["file"] != name:
        record["file_bytes"] = os.fsencode(name).hex()
    return record | fields


def text(label: Any) -> Any:
    """Text as UTF-8 can hold it; a label may also be a number."""
    return label.encode("utf-8", "surrogateescape").decode("utf-8", "replace") if isinstance(label, str) else label


def json_line(record: dict[str, Any]) -> str:
    """In ASCII, so that no terminal obeys it."""
    return json.dumps(record)


def open_output(path: str, kind: str, columns: int, resume: bool, facts: dict[str, Any]) -> Lines:
    """The file of answers: "predictions", of at most `columns`, or "embedding" s of so many numbers; facts: of begun.py.

    Raises ValueError or OSError, before any work is done, where it is there already, unless `resume`: then where it holds
    something else, or was begun with something else.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".parquet":
        return Parquet(path, kind, resume, facts)
    if suffix == ".csv":
        return Csv(path, kind, columns, resume, facts)
    return JsonLines(path, kind, resume, facts)


class Lines:
    """A file of records that grows. `recorded` gives the names in it from before, and whether they failed, in its order."""

    def __init__(self, path: str, kind: str, resume: bool, facts: dict[str, Any]):
        self.path, self.kind, self.facts = Path(path), kind, facts
        if self.path.is_dir():
            raise IsADirectoryError(f"{path} is a folder, where a file is to be written")
        if not resume:
            _check_absent(self.path)
        if _is_begun(self.path):
            begun.check(self.path, begun.noted(self.path), facts)
        elif not self.path.exists() or self.path.is_file():
            begun.note(self.path, facts)
        try:
            self.file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by `close`
        except FileNotFoundError:
            raise FileNotFoundError(f"{path} cannot be written: there is no folder {self.path.parent}") from None
        if self.path.is_file():
            self.file.truncate(self._whole())
        self.before = self.file.seek(0, os.SEEK_END) if self.path.is_file() else 0

    def write(self, record: dict[str, Any]) -> None:
        """Raises OSError, which names the file, where the disk is full: then what was written is not lost."""
        data = memoryview(self.encode(record).encode())
        try:
            while data:
                data = data[self.file.write(data) :]
        except OSError as error:
            hint = "what is in it stays, and --resume goes on from there"
            raise OSError(f"{self.path} cannot be written: {error.strerror}; {hint}") from error

    def encode(self, record: dict[str, Any]) -> str:
        raise NotImplementedError

    def recorded(self) -> Iterator[tuple[str, bool]]:
        raise NotImplementedError

    def _whole(self) -> int:
        """Bytes until the end of the last record that is whole."""
        raise NotImplementedError

    def finish(self) -> None:
        """All is done."""

    def close(self) -> None:
        self.file.close()


class JsonLines(Lines):
    """A JSON object a line."""

    def encode(self, record: dict[str, Any]) -> str:
        return json_line(record) + "\n"

    def records(self) -> Iterator[dict[str, Any]]:
        with open(self.path, "rb") as file:
            read = 0
            for number, line in enumerate(file, 1):
                read += len(line)
                if read > self.before:
                    return
                yield self._parsed(line, number)

    def recorded(self) -> Iterator[tuple[str, bool]]:
        for record in self.records():
            yield name_of(record), "error" in record

    def _parsed(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            record = json.loads(line)
            if isinstance(record["file"], str) and ("error" in record or self.kind in record):
                return record
        except (ValueError, TypeError, KeyError, RecursionError):
            pass
        raise ValueError(f"{self.path}, line {number}, holds no {self.kind} of a picture: it cannot be resumed")

    def _whole(self) -> int:
        with open(self.path, "rb") as file:
            end = file.seek(0, os.SEEK_END)
            while end:
                start = max(0, end - BLOCK)
                file.seek(start)
                found = file.read(end - start).rfind(b"\n")
                if found >= 0:
                    return start + found + 1
                end = start
        return 0


class Csv(Lines):
    """A row a picture, under a row of names: file, file_bytes, error, then label_1, index_1, score_1, ..., or feature_0, ..."""

    def __init__(self, path: str, kind: str, columns: int, resume: bool, facts: dict[str, Any]):
        head = ["file", "file_bytes", "error"]
        self.count = columns
        if kind == "predictions":
            head += [f"{name}_{rank}" for rank in range(1, columns + 1) for name in ("label", "index", "score")]
        else:
            head += [f"feature_{index}" for index in range(columns)]
        self.head = _row(head)
        super().__init__(path, kind, resume, facts)
        if not self.before:
            self.file.write(self.head.encode())

    def encode(self, record: dict[str, Any]) -> str:
        cells = [record["file"], record.get("file_bytes", ""), record.get("error", "")]
        if self.kind == "predictions":
            for prediction in record.get("predictions", ())[: self.count]:
                cells += [prediction["label"], prediction["index"], prediction["score"]]
        else:
            cells += record.get("embedding", ())
        return _row(cells + [""] * (self.head.count(",") + 1 - len(cells)))

    def _rows(self, most: int) -> Iterator[tuple[int, bytes]]:
        """(where it ends, the row) of each row that is whole: an end of line between quotation marks ends none."""
        with open(self.path, "rb") as file:
            row, end = b"", 0
            for line in file:
                row, end = row + line, end + len(line)
                if end > most:
                    return
                if line.endswith(b"\n") and row.count(b'"') % 2 == 0:
                    yield end, row
                    row = b""

    def _whole(self) -> int:
        end = 0
        for end, row in self._rows(1 << 62):
            if end == len(row) and row != self.head.encode():
                raise ValueError(f"{self.path} has other columns than this run would write: it cannot be resumed")
        return end

    def recorded(self) -> Iterator[tuple[str, bool]]:
        for _, row in islice(self._rows(self.before), 1, None):
            (cells,) = csv.reader(io.StringIO(row.decode(), newline=""))
            yield name_of({"file": cells[0]} | ({"file_bytes": cells[1]} if cells[1] else {})), bool(cells[2])


def _row(cells: list[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


class Parquet(JsonLines):
    """JSON lines until the end, and then a Parquet file in their place."""

    def __init__(self, path: str, kind: str, resume: bool, facts: dict[str, Any]):
        try:
            import pyarrow.parquet  # noqa: F401 - asked for before the work, which may take days
        except ImportError as error:
            raise ImportError(f"{path} needs pyarrow ({error}): pip install 'effnet_np[parquet]'") from error
        self.final = Path(path)
        lines = f"{path}.jsonl"
        if not resume:
            _check_absent(self.final)
            _check_absent(Path(lines))
        elif self.final.exists() and not _is_begun(Path(lines)):
            self._unpack(lines, facts)
        super().__init__(lines, kind, True, facts)

    def _unpack(self, lines: str, facts: dict[str, Any]) -> None:
        """The records of a finished file, to go on from them, and what it was begun with."""
        import pyarrow.parquet as parquet

        finished = parquet.ParquetFile(self.final)
        noted = (finished.schema_arrow.metadata or {}).get(begun.KEY)
        if noted is None:
            begun.beside(Path(lines)).unlink(missing_ok=True)
        else:
            before = parse_json(noted, self.final)
            begun.check(self.final, before, facts)
            begun.note(Path(lines), before)
        with replacing(lines) as temporary, open(temporary, "w") as file:
            for batch in finished.iter_batches(ROW_GROUP):
                for row in batch.to_pylist():
                    file.write(json_line({key: value for key, value in row.items() if value is not None}) + "\n")

    def finish(self) -> None:
        import pyarrow
        import pyarrow.parquet as parquet

        prediction = pyarrow.struct({"label": pyarrow.string(), "index": pyarrow.int32(), "score": pyarrow.float64()})
        answer = pyarrow.list_(prediction if self.kind == "predictions" else pyarrow.float32())
        fields = {name: pyarrow.string() for name in ("file", "file_bytes", "error")} | {self.kind: answer}
        noted = begun.noted(self.path)
        metadata = None if noted is None else {begun.KEY: json.dumps(noted)}
        schema = pyarrow.schema(list(fields.items()), metadata)
        self.before = self.path.stat().st_size
        records = self.records()
        with replacing(self.final) as temporary, parquet.ParquetWriter(temporary, schema) as writer:
            while rows := [_with_text_labels(record) for record in islice(records, ROW_GROUP)]:
                writer.write_table(pyarrow.Table.from_pylist(rows, schema))
        self.path.unlink()
        begun.beside(self.path).unlink(missing_ok=True)


def _is_begun(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _check_absent(path: Path) -> None:
    if _is_begun(path):
        raise FileExistsError(f"{path} is there already: --resume goes on with it; or remove it, or write to another")


def _with_text_labels(record: dict[str, Any]) -> dict[str, Any]:
    if "predictions" not in record:
        return record
    return record | {"predictions": [entry | {"label": str(entry["label"])} for entry in record["predictions"]]}


def name_of(record: dict[str, Any]) -> str:
    return os.fsdecode(bytes.fromhex(record["file_bytes"])) if record.get("file_bytes") else record["file"]


def not_yet(entries: Iterable[Any], recorded: Iterator[tuple[str, bool]], skipped: Callable[[bool], None]) -> Iterator[Any]:
    """The entries that are not recorded. `skipped` hears of each that is, and whether it had failed.

    Records come in the order of the entries, so that they are compared one by one, without keeping the names of a million;
    from the first difference on (files have come, or gone) the names of the remaining records are kept.
    """
    rest: dict[str, list[bool]] | None = None
    for entry in entries:
        if rest is None:
            name, failed = next(recorded, (None, False))
            if name == entry.name:
                skipped(failed)
                continue
            rest = {}
            for later, was in [] if name is None else [(name, failed), *recorded]:
                rest.setdefault(later, []).append(was)
        if rest.get(entry.name):
            skipped(rest[entry.name].pop(0))
        else:
            yield entry
