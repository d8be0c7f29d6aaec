"""Files that are read, and files that are written whole or not at all."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from yolact_runtime import files
from yolact_runtime.errors import YolactError, counted
from yolact_runtime.files import atomic_folder, atomic_path, is_stdout, read_json, read_text

posix = pytest.mark.skipif(sys.platform == "win32", reason="links and pipes of POSIX")


def test_text_is_read_without_its_byte_order_mark(tmp_path):
    path = tmp_path / "names.txt"
    path.write_bytes(b"\xef\xbb\xbfperson\n")
    assert read_text(path) == "person\n"
    path.write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json(path) == [1]


def test_errors_name_the_file_and_its_kind(tmp_path):
    path = tmp_path / "names.txt"
    with pytest.raises(YolactError, match=f"class list {path} does not exist"):
        read_text(path, "class list")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(YolactError, match=f"class list {path} is not UTF-8 text"):
        read_text(path, "class list")
    with pytest.raises(YolactError, match=f"class list {tmp_path} is a folder"):
        read_text(tmp_path, "class list")


@pytest.mark.parametrize(("number", "text"), [(0, "0 entries"), (1, "1 entry"), (2, "2 entries")])
def test_a_number_comes_with_its_noun(number, text):
    assert counted(number, "entry", "entries") == text


def test_a_device_is_not_read():
    if not Path("/dev/zero").exists():
        pytest.skip("has no /dev/zero")
    with pytest.raises(YolactError, match="class list /dev/zero is a device, not a file"):
        read_text("/dev/zero", "class list")


def test_deep_json_is_one_line(tmp_path):
    path = tmp_path / "deep.json"
    path.write_text("[" * 100_000)
    with pytest.raises(YolactError, match="is not valid JSON: it has more levels than the 64 allowed"):
        read_json(path)


def write(path, text="new"):
    with atomic_path(path) as temporary:
        temporary.write_text(text)


@posix
def test_links_stay_and_their_files_are_replaced(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store/real").write_text("old")
    (tmp_path / "store/real").chmod(0o640)
    (tmp_path / "link").symlink_to("store/real")
    (tmp_path / "second").symlink_to("link")
    (tmp_path / "dangling").symlink_to("new/folder/file")
    write(tmp_path / "second")
    write(tmp_path / "dangling")
    assert (tmp_path / "second").is_symlink() and (tmp_path / "link").is_symlink()
    assert (tmp_path / "store/real").read_text() == (tmp_path / "new/folder/file").read_text() == "new"
    assert (tmp_path / "store/real").stat().st_mode & 0o777 == 0o640
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "link"):
        raise RuntimeError
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["real"]


@posix
def test_a_folder_is_written_behind_its_link(tmp_path):
    (tmp_path / "link").symlink_to("real")
    with atomic_folder(tmp_path / "link") as folder:
        (folder / "x").write_text("x")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real/x").read_text() == "x"


@posix
def test_pipes_are_written_to(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    found = []
    reader = threading.Thread(target=lambda: found.append(path.read_bytes()))
    reader.start()
    write(path, "x" * 300_000)
    reader.join(10)
    assert len(found[0]) == 300_000 and path.is_fifo() and list(tmp_path.iterdir()) == [path]


@posix
def test_a_pipe_that_nobody_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "READER_WAIT", 0.1)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(YolactError, match="pipe: no process reads this pipe"):
        write(tmp_path / "pipe")


@posix
def test_devices_are_written_to(tmp_path):
    link = tmp_path / "null"
    link.symlink_to("/dev/null")
    write(link)
    assert link.is_symlink() and Path("/dev/null").is_char_device()
    if Path("/dev/full").exists():
        with pytest.raises(YolactError, match="cannot write /dev/full: No space left on device"):
            write("/dev/full")


@posix
def test_descriptors_are_written_to(tmp_path):
    script = """if True:
        import sys
        from yolact_runtime.files import atomic_path, is_stdout
        for path in sys.argv[1:]:
            assert is_stdout(path)
            print("text")
            with atomic_path(path) as temporary:
                temporary.write_text(path + chr(10))
    """
    link = tmp_path / "link"
    link.symlink_to("/dev/stdout")
    paths = ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", str(link)]
    paths = [path for path in paths if path == "-" or Path(path).exists()]
    with (tmp_path / "out.txt").open("w") as out:
        subprocess.run([sys.executable, "-c", script, *paths], check=True, stdout=out)
    assert (tmp_path / "out.txt").read_text() == "".join(f"text\n{path}\n" for path in paths)
    done = subprocess.run([sys.executable, "-c", script, *paths], check=True, capture_output=True, text=True)
    assert done.stdout == (tmp_path / "out.txt").read_text()


def test_only_standard_output_is_it(tmp_path):
    assert is_stdout("-") and is_stdout(Path("-"))
    assert not any(map(is_stdout, (None, tmp_path, tmp_path / "-", "n" * 300, tmp_path / "1", "/dev/null")))


def test_errors_name_the_file_that_is_meant(tmp_path):
    target, gone = tmp_path / "target.txt", tmp_path / "gone"
    message = f"cannot open {gone}: No such file or directory; {target} is not written"
    with pytest.raises(YolactError, match=f"^{message}$"), atomic_path(target):
        gone.read_bytes()
    with pytest.raises(YolactError, match=f"^cannot write {target}: No space left$"), atomic_path(target):
        raise OSError(28, "No space left")
    with (
        pytest.raises(YolactError, match=f"^cannot write {target}: No such file"),
        atomic_path(target) as temporary,
    ):
        temporary.unlink()
    (tmp_path / "file").touch()
    with pytest.raises(YolactError, match=r"^cannot write .*file/x/y: "):
        write(tmp_path / "file/x/y")


def test_the_longest_names_can_be_written(tmp_path):
    for name in ("a" * 251 + ".png", "\u65e5" * 83 + ".json", "x." + "b" * 253):
        write(tmp_path / name)
    assert len(list(tmp_path.iterdir())) == 3
