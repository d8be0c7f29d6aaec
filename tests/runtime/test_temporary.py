"""Names of temporary files, what is left of killed runs, and locks against a second run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from yolact_runtime import temporary
from yolact_runtime.errors import YolactError
from yolact_runtime.files import atomic_folder, atomic_path
from yolact_runtime.outputs import check_outputs
from yolact_runtime.temporary import claim, claiming, sweep

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="temporary files have no lock there")


def left(name: str, host: str = "") -> str:
    """The name of a temporary file of a killed run, for an output `name`."""
    own, start = temporary._origin()
    path = Path(name)
    return f".{path.stem}.yolact-{host or own}-{'0' * 8 if host else start}-abcd_123{path.suffix}"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    "name", ["a" * 251 + ".png", "\u65e5" * 83 + ".json", "x." + "b" * 253, "a\udcff.png"]
)
def test_temporary_names_are_short(tmp_path, name):
    with atomic_path(tmp_path / name) as path:
        assert len(os.fsencode(path.name)) < 143
        assert temporary._is_ours(path.name)
    assert names(tmp_path) == {name}


def test_what_killed_runs_left_is_removed(tmp_path):
    for name in ("a.png", "b", "c.d.json"):
        (tmp_path / left(name)).write_text("x")
    (tmp_path / left("model") / "1").mkdir(parents=True)
    (tmp_path / left("model") / "1" / "file").write_text("x")
    (tmp_path / f".yolact-lock-{'0' * 16}").touch()
    with atomic_path(tmp_path / "new") as path:
        path.write_text("new")
    assert names(tmp_path) == {"new"}


def test_what_is_not_ours_or_alive_stays(tmp_path):
    (tmp_path / "precious").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x").write_text("x")
    others = {".hidden", ".a.abcd1234.png", left("a.png", host="deadbeef"), ".yolact-lock-12", "a.yolact-1"}
    for name in others:
        (tmp_path / name).write_text("x")
    (tmp_path / f".yolact-lock-{'1' * 16}").write_text("not empty")
    (tmp_path / left("link.png")).symlink_to("precious")
    (tmp_path / left("folderlink")).symlink_to("folder")
    before = names(tmp_path)
    with atomic_path(tmp_path / "living.png"), atomic_folder(tmp_path / "model"):
        living = names(tmp_path) - before
        temporary._swept.clear()
        sweep(tmp_path)
        assert names(tmp_path) == before | living
    assert names(tmp_path) == before | {"living.png", "model"}
    assert (tmp_path / "precious").read_text() == (tmp_path / "folder/x").read_text() == "x"


def test_recordings_of_killed_runs_stay(tmp_path):
    with atomic_path(tmp_path / "camera.mkv", keep=True) as path:
        assert path.suffix == ".mkv" and not temporary._is_ours(path.name)


def test_a_folder_is_swept_once(tmp_path):
    sweep(tmp_path)
    (tmp_path / left("a.png")).touch()
    sweep(tmp_path)
    assert names(tmp_path) == {left("a.png")}


HOLD = """if True:
    import sys
    from pathlib import Path
    from yolact_runtime.outputs import check_outputs
    from yolact_runtime.temporary import claiming
    with claiming():
        check_outputs([], [("--json", Path(sys.argv[1]))], [("--output", Path(sys.argv[2]))])
        print("held", flush=True)
        sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Another run, which writes to `results/a.json` and the folder `overlays`."""
    paths = str(tmp_path / "results/a.json"), str(tmp_path / "overlays")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, *paths], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_second_run_is_refused(tmp_path, other):
    file, folder = tmp_path / "results/a.json", tmp_path / "overlays"
    (tmp_path / "link.json").symlink_to("results/a.json")
    with claiming():
        for path in (file, tmp_path / "link.json", tmp_path / "overlays/../results/a.json"):
            with pytest.raises(
                YolactError, match=r"^another run writes to .*json; wait for it, or name anoth"
            ):
                check_outputs([], [("--json", path)])
        with pytest.raises(YolactError, match=f"^another run writes to {folder}; .* name another folder$"):
            check_outputs([], [], [("--output", folder)])
        # Another file, a file in the folder, and what several runs may write.
        check_outputs([], [("--json", tmp_path / "results/b.json"), ("--jsonl", folder / "c.jsonl")])
        check_outputs([], [("--cache", file)], [("--output", folder)], shared=["--cache", "--output"])
    other.kill()
    other.wait()
    with claiming():
        check_outputs([], [("--json", file)], [("--output", folder)])
    assert names(tmp_path) == {"results", "overlays", "link.json"}  # those that the killed run created
    assert not names(tmp_path / "results") and not names(folder)


def test_a_run_may_name_an_output_twice_and_leaves_no_trace(tmp_path):
    with claiming():
        claim(tmp_path / "new/deep/a.json")
        claim(tmp_path / "new/deep/a.json")
        claim(tmp_path / "new/deep", folder=True)
        assert len(names(tmp_path / "new/deep")) == 2
    assert not names(tmp_path)
    claim(tmp_path / "outside.json")  # not within a command
    assert not names(tmp_path)


def test_a_lock_file_that_is_something_else_is_kept(tmp_path):
    with claiming():
        claim(tmp_path / "a.json")
        (lock,) = tmp_path.iterdir()
    for make in (lambda: lock.symlink_to("precious"), lambda: lock.write_text("x"), lambda: os.mkfifo(lock)):
        make()
        with claiming():
            claim(tmp_path / "a.json")
        assert names(tmp_path) == {lock.name}
        lock.unlink()
