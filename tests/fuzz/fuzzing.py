"""Make inputs by number, run them, and save those that are judged wrong.

`python tests/fuzz/fuzzing.py READER COUNT [SEED]` runs many without pytest.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

if __name__ == "__main__":
    import importlib.util

    # As conftest.py does: with their folder on the path, tests/yolact would hide the package.
    for name in ("fake_onnx", "engine_files", "videos"):
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parent.parent / f"{name}.py")
        assert spec and spec.loader
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])

import corpus
import mutate
from corpus import Seed
from judge import Judge, Verdict


def make(reader: str, seeds: list[Seed], seed: int, number: int) -> Seed:
    """The input of this number: always the same for the same seed."""
    random = Random(f"{seed}/{reader}/{number}")
    chosen = seeds[number % len(seeds)] if number < len(seeds) else random.choice(seeds)
    if chosen.words:
        argv = tuple(mutate.mutate_words(chosen.argv, random))
        return Seed(**{**vars(chosen), "argv": argv})
    others = [s.data for s in seeds if s.mutator is chosen.mutator]

    def changed() -> bytes:
        return chosen.mutator(chosen.data, random, random.choice(others))

    copies = {f"in/{name}": changed() for name in chosen.copies}
    return Seed(**{**vars(chosen), "data": changed(), "others": {**chosen.others, **copies}})


def run(judge: Judge, item: Seed, folder: Path, shared: Path) -> Verdict:
    """Run an input in an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "in").mkdir(parents=True)
    for name, data in {f"in/{item.victim}": item.data, **item.others}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    argv = [_placed(word, folder, shared) for word in item.argv]
    return judge.run(folder, argv, item.stdin, environ_of(item.argv))


def environ_of(argv: Sequence[str]) -> dict[str, str]:
    """Environment variables for a command: its own engine needs no trial, which takes a second."""
    return {"YOLACT_TRUST_ENGINES": "1"} if "{shared}/m.onnx" in argv else {}


def _placed(word: str, folder: Path, shared: Path) -> str:
    return word.replace("{run}", str(folder)).replace("{shared}", str(shared))


def save(item: Seed, verdict: Verdict, folder: Path, shared: Path, target: Path) -> str:
    """Keep an input that was judged wrong; returns the command that repeats it."""
    target.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(target / "in", ignore_errors=True)
    (target / "in").mkdir()
    for name, data in {f"in/{item.victim}": item.data, **item.others}.items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    for path in shared.iterdir():
        if any(f"{{shared}}/{path.name}" in word for word in item.argv) and not (target / path.name).exists():
            (shutil.copytree if path.is_dir() else shutil.copy)(path, target / path.name)
    argv = [word.replace("{shared}", "{run}") for word in item.argv]
    order = {"argv": argv, "stdin": item.stdin, "environ": environ_of(item.argv)}
    (target / "order.json").write_text(json.dumps(order))
    (target / "verdict.txt").write_text("\n".join([*verdict.faults, "", verdict.tail]), errors="replace")
    return f"{sys.executable} {Path(__file__).with_name('judge.py')} {target}"


def fuzz(
    judge: Judge,
    reader: str,
    folder: Path,
    shared: Path,
    *,
    seed: int,
    more: Callable[[int], bool],
    keep: Path,
    first: int = 0,
    report: Callable[[str], None] = lambda text: None,
) -> tuple[int, list[str]]:
    """Run inputs of a reader while `more(number)` says so.

    Returns:
        How many files were read, and a text for each finding.
    """
    seeds = list(corpus.READERS[reader]())
    found = []
    number, ran = first, 0
    while more(number):
        item = make(reader, seeds, seed, number)
        verdict = run(judge, item, folder, shared)
        if verdict.faults:
            command = save(item, verdict, folder, shared, keep / f"{reader}-{seed}-{number}")
            found.append(f"{'; '.join(verdict.faults)}\n  again: {command}")
            report(found[-1])
        number += 1
        ran += 1 + len(item.copies)
    return ran, found


def main(reader: str, count: int, seed: int) -> None:
    """Run a number of inputs and print the findings, counted by kind."""
    keep = Path(os.environ.get("YOLACT_FUZZ_KEEP") or tempfile.mkdtemp(prefix="yolact-fuzz-"))
    with tempfile.TemporaryDirectory(prefix="fuzzing-") as name, Judge() as judge:
        shared = Path(name) / "shared"
        corpus.shared_files(shared)
        start = time.monotonic()
        ran, found = fuzz(
            judge, reader, Path(name) / "work" / "run", shared,
            seed=seed, more=lambda number: number < count, keep=keep,
            report=lambda text: print(text, flush=True),
        )  # fmt: skip
        print(f"{reader}: {ran} inputs, {len(found)} findings, {time.monotonic() - start:.0f} s")
        for kind, times in Counter(text.split("\n")[0][:100] for text in found).most_common():
            print(f"{times:5} {kind}")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0)
