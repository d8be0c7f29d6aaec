"""Compiled networks in the cache folder: the results are the same, and nobody else can have written them."""

from __future__ import annotations

import errno
import importlib.util
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fake_onnx import NATIVE, int8_file, native_arrays, write_onnx

from yolact_runtime import load_engine
from yolact_runtime.engines import compiled as module
from yolact_runtime.engines import content
from yolact_runtime.engines.compiled import CompiledNetwork, Entry
from yolact_runtime.engines.onnxruntime import OnnxRuntimeEngine

DATA = bytes(range(256)) * 40
VALUE = {"precision": "fp32"}
IMAGES = [np.random.default_rng(seed).integers(0, 256, (40, 50, 3), np.uint8) for seed in range(2)]

posix = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no owners and modes")


def openvino_keeps_networks() -> bool:
    """Whether there is an OpenVINO that reads compiled networks from memory, as those after 2025 do."""
    if importlib.util.find_spec("openvino") is None:
        return False
    import openvino

    return "openvino.Tensor" in (openvino.Core.import_model.__doc__ or "")


backends = pytest.mark.parametrize(
    "backend",
    [
        "onnxruntime",
        pytest.param(
            "openvino",
            marks=pytest.mark.skipif(not openvino_keeps_networks(), reason="no OpenVINO that keeps networks"),
        ),
    ],
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder for each test; the folder of its networks."""
    monkeypatch.setenv("YOLACT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("YOLACT_TRUST_ENGINES", "1")
    return tmp_path / "cache" / module.FOLDER


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return write_onnx(tmp_path / "m.onnx", native_arrays(), NATIVE)


def kept(network: Path, version: str = "1", settings: object = 1, device: object = None) -> CompiledNetwork:
    return CompiledNetwork(network, "library", version, settings, device)


def read(network: Path) -> tuple[dict, bytes] | None:
    entry = kept(network).read()
    return None if entry is None else (dict(entry.value), bytes(entry.data))


def change(network: Path) -> None:
    """Write a description into the file, another one each time."""
    network.write_bytes(network.read_bytes() + b"\x32\x01x")


def written(network: Path, cache: Path) -> Path:
    """The file of an entry that has just been written."""
    kept(network).write(VALUE, DATA)
    (file,) = cache.iterdir()
    return file


def test_what_is_written_is_read(network: Path, cache: Path) -> None:
    assert read(network) is None and kept(network).may_be_kept()
    kept(network).write(VALUE, DATA)
    assert read(network) == (VALUE, DATA)
    assert [cache.stat().st_mode & 0o777, next(cache.iterdir()).stat().st_mode & 0o777] == [0o700, 0o600]


def test_other_versions_settings_machines_and_contents_are_other_entries(network: Path) -> None:
    kept(network).write(VALUE, DATA)
    for changed in ({"version": "2"}, {"settings": 2}, {"device": "other"}):
        assert kept(network, **changed).read() is None
    copy = Path(shutil.copy(network, network.with_name("copy.onnx")))
    assert read(copy) == (VALUE, DATA)
    change(network)
    assert read(network) is None


def test_instructions_and_cpu_features_are_part_of_the_machine(
    network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(network).write(VALUE, DATA)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert read(network) is None
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    monkeypatch.setattr(module, "cpu_flags", lambda: {"avx2"})
    assert read(network) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:100],
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:],
        lambda data: b"[" * 4096 + data[4096:],
        lambda data: b"1".ljust(4096) + data[4096:],
        lambda data: b"{}".ljust(4096) + data[4096:],
    ],
)
def test_damaged_entries_are_written_again(
    network: Path, cache: Path, damage: Callable[[bytes], bytes]
) -> None:
    file = written(network, cache)
    file.write_bytes(damage(file.read_bytes()))
    assert read(network) is None
    kept(network).write(VALUE, DATA)
    assert read(network) == (VALUE, DATA)


def test_an_entry_under_the_name_of_another_is_not_used(network: Path, cache: Path) -> None:
    first = written(network, cache)
    kept(network, version="2").write(VALUE, DATA)
    (second,) = set(cache.iterdir()) - {first}
    second.replace(first)
    assert read(network) is None


@posix
def test_what_others_may_have_written_is_not_used(network: Path, cache: Path) -> None:
    file = written(network, cache)
    for path, mode in ((file, 0o666), (cache, 0o777), (cache.parent, 0o770)):
        before = path.stat().st_mode & 0o777
        path.chmod(mode)
        assert read(network) is None
        assert path == file or not kept(network).may_be_kept()
        path.chmod(before)
    assert read(network) == (VALUE, DATA)
    real = file.rename(file.with_name("real"))
    file.symlink_to(real)
    assert read(network) is None


@posix
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() != 0, reason="needs another owner")
def test_what_belongs_to_another_user_is_not_used(network: Path, cache: Path) -> None:
    file = written(network, cache)
    os.chown(file, 12345, 12345)
    assert read(network) is None
    os.chown(file, 0, 0)
    os.chown(cache, 12345, 12345)
    assert read(network) is None and not kept(network).may_be_kept()


def test_nothing_is_kept_of_a_file_that_changes_before_it_is_compiled(network: Path, cache: Path) -> None:
    before = kept(network)
    change(network)
    before.write(VALUE, DATA)
    assert not cache.exists() or not list(cache.iterdir())


def test_full_disk(network: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(network)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=len(DATA)))
    assert not kept(network).may_be_kept() or network.stat().st_size * 2 < len(DATA)
    kept(network).write(VALUE, DATA)
    assert not list(cache.iterdir()) and read(network) is None
    monkeypatch.undo()


def test_a_disk_that_fills_while_writing(network: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.open

    def full(path: Path, mode: str = "r", *rest: object, **more: object) -> object:
        if mode == "wb" and path.parent == cache:
            real(path, mode).write(b"part")
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, mode, *rest, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", full)
    kept(network).write(VALUE, DATA)
    assert not list(cache.iterdir())


def test_those_not_used_for_longest_are_removed(
    network: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = 4096 + len(DATA)
    monkeypatch.setenv("YOLACT_MAX_CACHE_BYTES", str(3 * one))
    (cache.parent).mkdir(mode=0o700)
    for number in range(3):
        kept(network, version=str(number)).write(VALUE, DATA)
    for age, file in enumerate(sorted(cache.iterdir())):
        os.utime(file, (1e9 + age, 1e9 + age))
    oldest = min(cache.iterdir(), key=lambda file: file.stat().st_mtime)
    (version,) = (n for n in "012" if Path(kept(network, version=n)._entry or "") == oldest)
    assert kept(network, version=version).read() is not None  # and is the newest now
    kept(network, version="3").write(VALUE, DATA)
    assert len(list(cache.iterdir())) == 3 and oldest.exists()
    monkeypatch.setenv("YOLACT_MAX_CACHE_BYTES", str(one - 1))
    kept(network, version="4").write(VALUE, DATA)
    assert kept(network, version="4").read() is None


def test_a_limit_of_one_byte_keeps_and_uses_nothing(
    network: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(network).write(VALUE, DATA)
    monkeypatch.setenv("YOLACT_MAX_CACHE_BYTES", "1")
    assert read(network) is None and not kept(network).may_be_kept()


def test_several_at_once(network: Path) -> None:
    """Writers and readers of one entry: what is read is always whole."""
    found: list[object] = []

    def work() -> None:
        for _ in range(10):
            kept(network).write(VALUE, DATA)
            found.append(read(network))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [(VALUE, DATA)] * 30


def test_hashes_are_remembered_until_the_file_changes(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "_SETTLED", -1.0)
    first = content.content_hashes([network])
    reads: list[Path] = []
    real = content.sha256
    monkeypatch.setattr(content, "sha256", lambda file: reads.append(file) or real(file))
    assert content.content_hashes([network]) == first and not reads
    status = network.stat()
    data = network.read_bytes()
    network.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(network, ns=(status.st_atime_ns, status.st_mtime_ns))  # the time of change stays true
    assert content.content_hashes([network]) != first and reads


@backends
@pytest.mark.parametrize("kind", ["fp32", "int8"])
def test_results_are_equal_to_the_bit(network: Path, cache: Path, backend: str, kind: str) -> None:
    """Without the cache, when it is filled, and from it; for each number of threads and streams."""
    if kind == "int8":
        int8_file(network, relu=True)

    def arrays(**options: object) -> list[bytes]:
        with load_engine(network, backend=backend, **options) as engine:  # type: ignore[arg-type]
            batch = np.stack([engine.prepare(image) for image in IMAGES[: engine.metadata.max_batch]])
            return [np.asarray(value).tobytes() for value in engine.detect(batch)] + [
                engine.precision.encode(),
                str(engine.streams).encode(),
            ]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("YOLACT_MAX_CACHE_BYTES", "1")
        plain = arrays(threads=2), arrays(threads=2, streams=2)
        assert not cache.exists()
    assert (arrays(threads=2), arrays(threads=2, streams=2)) == plain
    assert len(list(cache.iterdir())) == (2 if backend == "openvino" else 1)
    times = {file: file.stat().st_ino for file in cache.iterdir()}
    assert (arrays(threads=2), arrays(threads=2, streams=2)) == plain
    assert times == {file: file.stat().st_ino for file in cache.iterdir()}


@backends
def test_an_entry_that_the_library_refuses_is_replaced(
    network: Path, cache: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its CRC is right, but the library says no: the file itself is opened."""
    load_engine(network, backend=backend).close()
    (before,) = cache.iterdir()
    with pytest.MonkeyPatch.context() as patch:
        entry = Entry({"precision": "fp32", "unknown": ""}, np.zeros(100, np.uint8))
        patch.setattr(
            CompiledNetwork, "read", lambda _, allocate=None: (allocate and allocate(100).fill(0)) or entry
        )
        load_engine(network, backend=backend).close()
    assert list(cache.iterdir()) == [before]


def test_a_read_only_home_is_no_error(network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("YOLACT_CACHE", str(tmp_path / "file" / "cache"))
    assert not kept(network).may_be_kept()
    with load_engine(network, backend="onnxruntime") as engine:
        assert isinstance(engine, OnnxRuntimeEngine)


@pytest.mark.skipif(not openvino_keeps_networks(), reason="no OpenVINO that keeps networks")
def test_releases_of_openvino_that_import_from_files_only_keep_nothing(
    network: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from yolact_runtime.engines import openvino

    class Core:
        compiled = 0

        def import_model(self, model: object, *rest: object) -> object:
            """Imports from a BytesIO."""
            raise TypeError("incompatible function arguments")

        def compile_model(self, *words: object) -> object:
            self.compiled += 1
            return real.compile_model(*words)

        def __getattr__(self, name: str) -> object:
            return getattr(real, name)

    real, core = openvino.shared_core(), Core()
    monkeypatch.setattr(openvino, "shared_core", lambda: core)
    load_engine(network, backend="openvino").close()
    assert core.compiled == 1 and not cache.exists()


@pytest.mark.skipif(not openvino_keeps_networks(), reason="no OpenVINO that keeps networks")
def test_nothing_is_kept_of_an_openvino_file_whose_readers_differ(
    network: Path, tmp_path: Path, cache: Path
) -> None:
    """A comment behind the metadata is what the reader of the file's end finds."""
    export = pytest.importorskip("yolact_export.openvino")
    path = tmp_path / "m.xml"
    export.write_openvino(network, path)
    shutil.rmtree(cache, ignore_errors=True)
    text = path.read_text()
    section = text[text.rindex("<yolact>") : text.rindex("</yolact>") + len("</yolact>")]
    path.write_text(f"{text}<!-- {section.replace('cat', 'cow')} -->")
    for _ in range(2):
        with load_engine(path, backend="openvino") as engine:
            assert engine.metadata.class_names[0] == "cat"
    assert not cache.exists()
    path.write_text(text)
    load_engine(path, backend="openvino").close()
    assert len(list(cache.iterdir())) == 1


@posix
@pytest.mark.parametrize("where", ["file", "folder", "above", "link"])
def test_nothing_is_kept_of_a_file_that_others_can_replace(
    tmp_path: Path, cache: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They could put another one there while it is compiled, and the first back."""
    (tmp_path / "above" / "folder").mkdir(parents=True)
    network = write_onnx(tmp_path / "above" / "folder" / "m.onnx", native_arrays(), NATIVE)
    shared = {"file": network, "folder": network.parent}.get(where, tmp_path / "above")
    if where == "link":
        (tmp_path / "own").mkdir()
        real = network.replace(tmp_path / "own" / "m.onnx")
        network.symlink_to(real)
    given: list[str] = []
    monkeypatch.setattr("yolact_runtime.cache.log.warning", given.append)
    noted: list[str] = []
    monkeypatch.setattr(module.log, "info", noted.append)
    shared.chmod(0o777)
    assert not kept(network).may_be_kept()
    kept(network).write(VALUE, DATA)
    assert read(network) is None and not given
    (line,) = noted  # once, of both
    assert f"others may write to {shared}; run: chmod go-w {shared}" in line
    shared.chmod(0o1777 if shared.is_dir() else 0o644)  # as /tmp
    assert kept(network).may_be_kept()
    kept(network).write(VALUE, DATA)
    assert read(network) == (VALUE, DATA)


@posix
def test_one_warning_says_that_others_may_write_the_cache(
    network: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[str] = []
    monkeypatch.setattr("yolact_runtime.cache.log.warning", given.append)
    written(network, cache)
    cache.chmod(0o777)
    assert (read(network), read(network)) == (None, None)
    assert len(given) == 1 and "chmod 700" in given[0]


def test_the_checksum_covers_what_is_kept_with_the_data(network: Path, cache: Path) -> None:
    file = written(network, cache)
    file.write_bytes(file.read_bytes().replace(b'"fp32"', b'"fp16"', 1))
    assert read(network) is None


def test_other_versions_of_this_package_are_other_entries(
    network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(network).write(VALUE, DATA)
    monkeypatch.setattr(module, "__version__", "0.0")
    assert read(network) is None


@pytest.mark.parametrize("name", module._INSTRUCTIONS)
def test_each_variable_is_part_of_the_machine(
    network: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(network).write(VALUE, DATA)
    monkeypatch.setenv(name, "BF16")
    assert read(network) is None


def test_nothing_is_kept_for_a_cpu_that_is_not_known(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "cpu_flags", set)
    assert not kept(network).may_be_kept() and kept(network, device="gpu").may_be_kept()


def test_entries_that_are_being_written_are_not_removed(
    network: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(network, cache)
    hidden = cache / f".part{module._SUFFIX}"
    hidden.write_bytes(DATA)
    monkeypatch.setenv("YOLACT_MAX_CACHE_BYTES", str(file.stat().st_size))
    kept(network, version="2").write(VALUE, DATA)
    assert hidden.exists() and not file.exists()


def test_what_is_kept_longer_is_read_again(network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose times say nothing of its change."""
    monkeypatch.setattr(content, "_SETTLED", -1.0)
    before = content.content_hashes([network])
    entry = kept(network)
    state, found = content._known[str(network)]
    change(network)
    now = network.stat()
    state = (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns)
    content._known[str(network)] = state, found
    assert content.content_hashes([network]) == before
    entry.write(VALUE, DATA)
    assert entry.read() is None
    assert content.content_hashes([network], again=True) != before
