"""The folder of Parquet parts that a run on a cluster writes: what is in it, and continuing it.

Ray's writer gives a part its name when it begins to write it. A killed run may leave a part that is cut
off: it has no footer, which Parquet writes last, so nothing reads it as whole.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from yolact_runtime.batch.listing import digests
from yolact_runtime.batch.remote_files import filesystem_of, is_remote, local_path
from yolact_runtime.batch.rows import RECORD
from yolact_runtime.errors import UsageError, YolactError, counted, first_line, without_secrets
from yolact_runtime.files import atomic_path
from yolact_runtime.pipeline import SourceStats
from yolact_runtime.untrusted import parse_json

if TYPE_CHECKING:
    import pyarrow
    from pyarrow.fs import FileSystem

log = logging.getLogger(__name__)

_STORES = ("s3", "gcs", "abfs")  # without folders; to make one may need rights that a run does not
_LONGEST_RECORD = 1 << 20


class PartsFolder:
    """A folder of parts, `*.parquet`, and a record of the run that writes them, `_yolact.json`.

    The record is `{"run", "state", ...}`: a mark of all that decides what is found, as in JSON Lines, and
    "running" or "done".

    Args:
        folder: A path or an address.

    Attributes:
        system: Its file system.
        path: In that.

    Raises:
        YolactError: the address cannot be opened.
    """

    def __init__(self, folder: str) -> None:
        from pyarrow.fs import LocalFileSystem

        folder = local_path(folder)
        self.name = without_secrets(folder)
        self._local = not is_remote(folder)
        self.system: FileSystem
        self.system, self.path = (
            (LocalFileSystem(), os.path.abspath(folder)) if self._local else filesystem_of(folder)  # noqa: PTH100
        )

    def parts(self) -> list[str]:
        """Names of the parts."""
        from pyarrow.fs import FileSelector

        with self._errors("read"):
            entries = self.system.get_file_info(FileSelector(self.path, allow_not_found=True))
        names = sorted(entry.base_name for entry in entries if entry.is_file)
        return [name for name in names if name.endswith(".parquet") and name[0] not in "._"]

    def check(self, resume: bool) -> None:
        """Check what is in the folder, before any work.

        Raises:
            UsageError: without `resume`, there are parts of an earlier run.
            YolactError: another program wrote the parts, or the folder cannot be read.
        """
        parts, record = self.parts(), self._record()
        if not resume and (parts or record):
            raise UsageError(
                f"{self.name} has {counted(len(parts), 'part')} of an earlier run; add --resume, or name"
                " another folder"
            )
        if parts and record is None:
            raise YolactError(
                f"cannot resume {self.name}: it has Parquet files and no {RECORD}, so another program wrote"
                " them; name another folder"
            )

    def begin(self, run: str) -> np.ndarray:
        """Begin a run, or continue one: parts that are cut off are removed, and so are rows with an error.

        Returns:
            The sorted `digests` of the paths that are done.

        Raises:
            YolactError: the parts are of another run, or cannot be read or written.
        """
        record = self._record()
        if record is not None and record["run"] != run:
            raise YolactError(
                f"cannot resume {self.name}: it was written with another engine, --score-threshold, --top-k,"
                " --classes, --tile or --precision; keep them, or name another folder"
            )
        if self.system.type_name not in _STORES:
            with self._errors("write"):
                self.system.create_dir(self.path, recursive=True)
        self._write(RECORD, json.dumps({"run": run, "state": "running"}).encode())
        done = [self._done_in(name) for name in self.parts()]
        return np.sort(np.concatenate(done)) if done else digests([])

    def count(self, before: set[str]) -> SourceStats:
        """Count the images in all parts but those `before`."""
        stats = SourceStats()
        for name in self.parts():
            if name not in before:
                self._count(name, stats)
        return stats

    def end(self, run: str) -> None:
        """Record that the run is done."""
        self._write(RECORD, json.dumps({"run": run, "state": "done"}).encode())

    def _record(self) -> dict[str, Any] | None:
        """The record of the run; None if there is none."""
        from pyarrow.fs import FileType

        with self._errors("read"):
            if self.system.get_file_info(self._at(RECORD)).type != FileType.File:
                return None
            with self.system.open_input_stream(self._at(RECORD)) as stream:
                text = stream.read(_LONGEST_RECORD)
        try:
            record = parse_json(text)
        except ValueError:
            record = None
        if not isinstance(record, dict) or not isinstance(record.get("run"), str):
            raise YolactError(f"{self.name}: {RECORD} was not written by yolact-infer; name another folder")
        return record

    def _done_in(self, name: str) -> np.ndarray:
        """The `digests` of the paths without an error in a part, which is rewritten without the others."""
        from pyarrow import compute, parquet

        with self._errors("read"):
            try:
                self._check_columns(name)
            except ValueError:  # ArrowInvalid: it has no footer
                log.warning("%s: part %s is cut off and removed; its images are done again", self.name, name)
                self.system.delete_file(self._at(name))
                return digests([])
            rows = parquet.read_table(self._at(name), columns=["path", "error"], **self._where())
        failed = compute.is_valid(rows.column("error"))
        if compute.any(failed).as_py():
            with self._errors("read"):
                whole = parquet.read_table(self._at(name), **self._where())
            self._replace(name, whole.filter(compute.invert(failed)))
        with self._errors("read"):
            paths = rows.filter(compute.invert(failed)).column("path").drop_null().to_pylist()
        return digests(paths)

    def _check_columns(self, name: str) -> None:
        """Check that a file can be a part.

        Raises:
            YolactError: it has other columns, so another program wrote it.
            ValueError: it has no footer.
        """
        import pyarrow as pa
        from pyarrow import parquet

        schema = parquet.read_schema(self._at(name), filesystem=self.system)
        text, lists = (
            (pa.types.is_string, pa.types.is_large_string),
            (pa.types.is_list, pa.types.is_large_list),
        )
        for column, kinds in (("path", text), ("error", text), ("area", lists)):
            if column not in schema.names or not any(kind(schema.field(column).type) for kind in kinds):
                raise YolactError(
                    f"{self.name}: {name} is no part of a run, by its column {column}; move it elsewhere"
                )

    def _replace(self, name: str, rows: pyarrow.Table) -> None:
        """Put other rows into a part; without any, remove it."""
        import pyarrow as pa
        from pyarrow import parquet

        if not rows.num_rows:
            with self._errors("write"):
                self.system.delete_file(self._at(name))
            return
        buffer = pa.BufferOutputStream()
        parquet.write_table(rows, buffer, compression="zstd")
        self._write(name, buffer.getvalue().to_pybytes())

    def _count(self, name: str, stats: SourceStats) -> None:
        from pyarrow import compute, parquet

        with self._errors("read"):
            self._check_columns(name)
            rows = parquet.read_table(self._at(name), columns=["area", "error"], **self._where())
        failed = compute.sum(compute.is_valid(rows.column("error"))).as_py() or 0
        stats.failed += failed
        stats.done += rows.num_rows - failed
        stats.detections += compute.sum(compute.list_value_length(rows.column("area"))).as_py() or 0

    def _write(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all; object stores do so by themselves."""
        with self._errors("write"):
            if self._local:
                with atomic_path(Path(self._at(name))) as temporary:
                    temporary.write_bytes(data)
                return
            with self.system.open_output_stream(self._at(name)) as stream:
                stream.write(data)

    def _at(self, name: str) -> str:
        return f"{self.path.rstrip('/')}/{name}"

    def _where(self) -> dict[str, Any]:
        """Arguments for Parquet's reader; no columns from the names of folders."""
        return {"filesystem": self.system, "partitioning": None}

    @contextlib.contextmanager
    def _errors(self, verb: str) -> Iterator[None]:
        """Turn errors of file systems and of Parquet files into one line."""
        from pyarrow import ArrowException

        try:
            yield
        except (OSError, ValueError, ArrowException) as error:
            raise YolactError(f"cannot {verb} {self.name}: {first_line(error)}") from error
