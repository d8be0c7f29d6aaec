"""Checks the outputs of a command before its work: they can be written, and none replaces an input."""

from __future__ import annotations

import functools
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from yolact_runtime.engines.onnx_file import read_external_files
from yolact_runtime.engines.remote.address import is_address
from yolact_runtime.errors import UsageError, YolactError
from yolact_runtime.files import STDOUT, follow_links, stream_of, writing
from yolact_runtime.temporary import claim

# An option and a path that it names, or whose name follows from it. Without a path it is left out.
Named = tuple[str, str | Path | None]
# Device and inode of a file, which all its names share; the path of one that does not exist yet.
Identity = tuple[int, int] | str

# Images have other suffixes, so folders of images need not be searched for these outputs.
_NO_IMAGES = (".csv", ".html", ".json", ".jsonl", ".parquet")


def check_outputs(
    reads: Iterable[Named],
    writes: Iterable[Named],
    folders: Iterable[Named] = (),
    shared: Collection[str] = (),
) -> None:
    """Check that everything can be written, and that no output is an input or another output.

    Files are compared by device and inode, so links and other spellings of a path make no difference. Within
    a command, the outputs are locked against other runs until its end.

    Args:
        reads: Files, folders of images, and `-` for standard input.
        writes: Files, also those with derived names; `-` for standard output.
        folders: Folders for files whose names are not known yet.
        shared: Options whose outputs other runs may write at the same time.

    Raises:
        UsageError: an output is an input or another output, or is a folder where a file is needed.
        YolactError: a folder cannot be written to, or another run writes to an output.
    """
    writes, folders = list(writes), list(folders)
    written: dict[Identity, tuple[str, str | Path]] = {}
    images = False
    for option, path in writes:
        if path is None:
            continue
        _check_file(option, path)
        identity = _identity_of_output(path)
        if identity in written:
            raise UsageError(
                f"{written[identity][0]} and {option} write the same file {path}; name two files"
            )
        if identity is not None:
            written[identity] = option, path
            images |= isinstance(identity, tuple) and _may_be_image(Path(path))
    for option, folder in folders:
        if folder is not None:
            _check_folder(option, Path(folder))
    if any(isinstance(identity, tuple) for identity in written):
        for option, path in _files(reads, images):
            if (found := written.get(identity_of(path))) is not None:
                writer, name = found
                raise UsageError(
                    f"{writer} would write over {name}, which is an input ({option}); name another file"
                )
    for option, path in writes:
        if path is not None and option not in shared and stream_of(path) is None:
            claim(follow_links(path))
    for option, folder in folders:
        if folder is not None and option not in shared:
            claim(Path(folder), folder=True)


def identity_of(path: str | Path) -> Identity:
    """What two names of the same file have in common; `-` is standard input."""
    try:
        info = os.fstat(0) if str(path) == STDOUT else Path(path).stat()
    except (OSError, ValueError):
        try:
            real = os.path.normcase(os.path.realpath(path))
        except ValueError:  # no file can have this name
            return str(path)
        return real.casefold() if sys.platform == "darwin" else real
    return info.st_dev, info.st_ino


def among(files: Callable[[], Iterable[str | Path]]) -> Callable[[Path], bool]:
    """A function that says whether a path is one of `files`, which are looked at when it is first needed."""
    known = functools.cache(lambda: {identity_of(path) for path in files()})
    # Unlike `Path.exists`, no error for a name that is too long.
    return lambda path: os.path.exists(path) and identity_of(path) in known()  # noqa: PTH110


def engine_files(engine: str | Path) -> list[Path]:
    """The file of an engine and those that belong to it: weights in other files, the JSON of an engine.

    An engine on a server has none.
    """
    if is_address(engine):
        return []
    path = Path(engine)
    suffix = path.suffix.lower()
    if suffix == ".xml":
        return [path, path.with_suffix(".bin")]
    if suffix in (".engine", ".plan"):
        return [path, Path(f"{path}.json")]
    if suffix == ".onnx":
        return [path, *(path.parent / name for name in read_external_files(path))]
    return [path]


def _check_file(option: str, path: str | Path) -> None:
    """Check that a file can be written, without leaving a trace."""
    stream = stream_of(path)
    if stream == 1 and sys.stdout is None:
        raise UsageError(f"{option} {path} needs standard output, which is closed")
    if isinstance(stream, int):
        with writing(path):
            os.fstat(stream)
    if isinstance(stream, Path) and not os.access(stream, os.W_OK):
        raise YolactError(f"cannot write {path}: Permission denied")
    if stream is None:
        target = follow_links(path)
        _check_folder("", target.parent)


def _check_folder(option: str, folder: Path) -> None:
    """Create a temporary file in a folder, or in the one that it will be created in."""
    if str(folder) == STDOUT and option:
        raise UsageError(f"{option} {folder}: files cannot go to standard output; name a folder")
    nearest = folder
    while not os.path.lexists(nearest) and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        reason = "it" if nearest == folder else nearest
        kind = "a broken symbolic link" if nearest.is_symlink() and not nearest.exists() else "a file"
        raise YolactError(f"cannot write to folder {folder}: {reason} is {kind}")
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise YolactError(f"cannot write to folder {folder}: {error.strerror or error}") from error


def _identity_of_output(path: str | Path) -> Identity | None:
    """The identity of a file to write; None for a device such as /dev/null, which takes several outputs."""
    stream = stream_of(path)
    if isinstance(stream, int):
        info = os.fstat(stream)
        return info.st_dev, info.st_ino
    if stream is not None and stat.S_ISCHR(stream.stat().st_mode):
        return None
    return identity_of(path)


def _may_be_image(path: Path) -> bool:
    """Whether an existing output may be a file in a folder of images, under this name or another."""
    return path.suffix.lower() not in _NO_IMAGES or path.is_symlink() or path.stat().st_nlink > 1


def _files(reads: Iterable[Named], images: bool) -> Iterator[tuple[str, str | Path]]:
    """All files that are read; those in folders only if `images`."""
    for option, path in reads:
        if path is None:
            continue
        if not Path(path).is_dir():
            yield option, path
        elif images:
            for folder, _, names in os.walk(path, followlinks=False):
                yield from ((option, Path(folder, name)) for name in names)
