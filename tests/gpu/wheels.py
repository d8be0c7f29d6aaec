"""Everything a GPU machine without a network needs to run this project, carried there in parts.

    python tests/gpu/wheels.py collect KIT --python 3.12       # here: downloads, cuts, lists with SHA-256
    python tests/gpu/wheels.py store KIT/transfer-01 STORE     # there, once for each transfer
    python tests/gpu/wheels.py install STORE --venv VENV       # there: joins, checks, installs, builds pycuda

`collect` needs pip and the network. The others need Python's standard library and pip, and for pycuda a C++
compiler and the headers of the CUDA toolkit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import site
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
KIT, LIST = "kit", "kit.json"
MIB = 2**20
# Beyond these, what pip resolves for them.
BASE = ("numpy", "opencv-python-headless", "pycocotools", "rich", "shtab")
# From 1.27 on, it is built for CUDA 13. Its extras are NVIDIA's libraries, which not every machine has.
ONNX_RUNTIME = {12: "onnxruntime-gpu[cuda,cudnn]<1.27", 13: "onnxruntime-gpu[cuda,cudnn]>=1.28"}
MEASURE = ("psutil", "scipy", "jinja2", "matplotlib", "nvidia-ml-py")
EXPORT = ("onnx", "onnxscript", "sympy", "pyyaml")
TESTS = ("pytest>=8", "pytest-timeout", "hypothesis")
# pycuda has no wheels: its own needs, and those of building it without a network.
PYCUDA = ("pytools", "platformdirs", "mako", "setuptools", "wheel")
# Large ones, only where they are asked for.
EXTRAS = {
    "torch": ("torch", "torchvision"),
    # PyPI has what imports these as sources only: that is built here, see `WRAPPED`.
    "tensorrt": ("tensorrt-cu{major}-libs", "tensorrt-cu{major}-bindings"),
    "tensorrt-rtx": ("tensorrt-rtx-cu{major}-libs", "tensorrt-rtx-cu{major}-bindings"),
    "openvino": ("openvino",),
}
WRAPPED = ("tensorrt", "tensorrt-rtx")
# What PyPI has not, or for another CUDA.
INDEXES = {"tensorrt": "https://pypi.nvidia.com", "torch": "https://download.pytorch.org/whl/cu{cuda}"}
# pip matches the number of a platform exactly.
PLATFORMS = (*(f"manylinux_2_{minor}_" for minor in range(39, 4, -1)), "manylinux2014_", "manylinux2010_",
             "manylinux1_", "linux_")  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("collect", help="download packages and cut them into transfers").add_argument
    add("folder", type=Path, help="new folder to write to")
    version = ".".join(map(str, sys.version_info[:2]))
    add("--python", default=version, metavar="X.Y", help=f"Python of the GPU machine (default: {version})")
    add("--machine", default="x86_64", choices=["x86_64", "aarch64"], help="its processor")
    add("--cuda", default="13.0", metavar="X.Y", help="CUDA of its driver, see nvidia-smi (default: 13.0)")
    add("--part-size", type=int, default=50, metavar="MIB", help="most bytes of a transfer (default: 50 MiB)")
    text = "its `pip freeze`: what is there already is left out; of a name without a version, any version"
    add("--have", type=Path, metavar="FILE", help=text)
    text = "large packages that are left out by default"
    add("--with", nargs="+", default=[], choices=sorted(EXTRAS), dest="extras", help=text)
    text = "further package index, such as https://download.pytorch.org/whl/cu128; may be repeated"
    add("--index", action="append", default=[], metavar="URL", help=text)
    add = commands.add_parser("store", help="add one transfer to the store").add_argument
    add("transfer", type=Path, help="folder of a transfer")
    add("store", type=Path, help="folder that collects all transfers")
    add = commands.add_parser("install", help="join, check and install what the store has").add_argument
    add("store", type=Path, help="folder that all transfers were added to")
    add("--venv", type=Path, help="virtual environment to create, which sees this Python's packages")
    add("--cuda-root", type=Path, help="CUDA toolkit, with include/cuda.h (default: it is looked for)")
    add("--driver", type=Path, help="libcuda.so.1 (default: it is looked for)")
    add("--no-pycuda", action="store_true", help="do not build pycuda")
    args = parser.parse_args(argv)
    try:
        if args.command == "collect":
            collect(args)
        elif args.command == "store":
            store(args.transfer, args.store)
        else:
            install(args)
    except (KitError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


class KitError(Exception):
    """What is wrong, and what to do about it."""


# ---- here ----


def collect(args: argparse.Namespace) -> None:
    """Download wheels for another machine, and cut them into transfers."""
    if args.folder.exists() and any(args.folder.iterdir()):
        raise KitError(f"{args.folder} is not empty; name a new folder")
    names = [*BASE, *MEASURE, *EXPORT, *TESTS, *PYCUDA, *_cuda_packages(args.cuda)]
    major = int(args.cuda.split(".")[0])
    _check_indexes(args.extras, args.cuda, args.index)
    names += [name.format(major=major) for extra in args.extras for name in EXTRAS[extra]]
    there = _frozen(args.have) if args.have else {}
    args.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.folder) as text:
        folder = Path(text)
        constraints = folder / "constraints.txt"
        known = {name: version for name, version in there.items() if version}
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in known.items()))
        files = folder / "files"
        files.mkdir()
        _download(names, files, args.python, args.machine, constraints, args.index)
        for extra in (extra for extra in args.extras if extra in WRAPPED):
            _wrap(f"{extra}-cu{major}", files)
        _pip("download", "--no-deps", "--no-binary", "pycuda", "-d", str(files), "pycuda")
        for file in sorted(files.iterdir()):
            name, version = _name_and_version(file.name)
            if there.get(name) in (version, ""):
                file.unlink()
            elif re.search(r"\d(a|b|rc)\d|dev", version.partition("+")[0]):
                raise KitError(f"{file.name} is a pre-release; no index has a final version for this machine")
        count = cut(sorted(files.iterdir()), args.folder, args.part_size * MIB, vars(args))
    print(f"{args.folder}: {count} transfers of at most {args.part_size} MiB; next, for each of them:")
    print("  python tests/gpu/wheels.py store TRANSFER STORE")


def _cuda_packages(version: str) -> list[str]:
    """The compiler of the kernels and its headers, no newer than the driver, and bindings of its major."""
    if not re.fullmatch(r"1[2-9]\.\d", version):
        raise KitError(f"--cuda {version}: the version that nvidia-smi shows is needed, such as 13.0")
    major = int(version.split(".")[0])
    suffix = "-cu12" if major == 12 else ""
    compiler = [f"nvidia-cuda-{name}{suffix}=={version}.*" for name in ("nvrtc", "runtime")]
    return [f"cuda-bindings=={major}.*", *compiler, ONNX_RUNTIME[major]]


def _check_indexes(extras: Sequence[str], cuda: str, given: Sequence[str]) -> None:
    """Refuse what PyPI has not: it has PyTorch for CUDA 13, and no libraries of TensorRT."""
    for extra in extras:
        if extra in INDEXES and not given and not (extra == "torch" and cuda.startswith("13")):
            index = INDEXES[extra].format(cuda=cuda.replace(".", ""))
            raise KitError(f"--with {extra} for CUDA {cuda}: PyPI has no wheels; add --index {index}")


def _wrap(name: str, folder: Path) -> None:
    """Build the wheel of a package that imports its libraries, of their version."""
    (libraries,) = folder.glob(f"{name.replace('-', '_')}_libs-*.whl")
    requirement = f"{name}=={_name_and_version(libraries.name)[1]}"
    _pip("wheel", "--no-deps", "--no-binary", name, "-w", str(folder), requirement)


def _download(
    names: Iterable[str], folder: Path, python: str, machine: str, constraints: Path,
    indexes: Sequence[str] = (),
) -> None:  # fmt: skip
    """Wheels of packages and of all that they need, for another Python and machine."""
    platforms = [word for name in PLATFORMS for word in ("--platform", f"{name}{machine}")]
    target = ["--python-version", python, "--implementation", "cp", "--abi", "cp" + python.replace(".", ""),
              "--abi", "abi3", "--abi", "none"]  # fmt: skip
    options = ["--only-binary=:all:", *platforms, *target, "-c", str(constraints), "-d", str(folder)]
    options += [word for index in indexes for word in ("--extra-index-url", index)]
    _pip("download", *options, *names)


def cut(files: Sequence[Path], folder: Path, most: int, about: dict[str, Any]) -> int:
    """Put files into folders `transfer-01`, ... of at most `most` bytes, large ones in parts.

    Each folder gets this script and the whole list, so that every transfer says what is still missing.

    Returns:
        The number of folders.
    """
    if most < MIB:
        raise KitError(f"transfers of {most} bytes are too small; --part-size 1 or more")
    reserve = 512 * 1024  # the script and the list
    room = most - reserve
    entries: list[dict[str, Any]] = []
    transfers: list[int] = []  # bytes of each
    for file in sorted(files, key=lambda one: -one.stat().st_size):
        digest, parts = hashlib.sha256(), []
        with file.open("rb") as source:
            while block := source.read(room):
                digest.update(block)
                number = next((n for n, used in enumerate(transfers) if used + len(block) <= room), None)
                if number is None:
                    number = len(transfers)
                    transfers.append(0)
                    _transfer(folder, number).mkdir()
                transfers[number] += len(block)
                name = f"{file.name}.part-{len(parts):03d}"
                (_transfer(folder, number) / name).write_bytes(block)
                part_digest = hashlib.sha256(block).hexdigest()
                parts.append({"name": name, "bytes": len(block), "sha256": part_digest})
        entries.append({"name": file.name, "sha256": digest.hexdigest(), "parts": parts})
    kept = {name: str(value) for name, value in about.items() if name in ("python", "machine", "cuda")}
    text = json.dumps({KIT: 1, **kept, "files": entries}, indent=1)
    if len(text) + Path(__file__).stat().st_size > reserve:
        raise KitError(f"the list of {len(entries)} files is longer than {reserve} bytes")
    for number in range(len(transfers)):
        (_transfer(folder, number) / LIST).write_text(text)
        shutil.copy(__file__, _transfer(folder, number))
    return len(transfers)


def _transfer(folder: Path, number: int) -> Path:
    return folder / f"transfer-{number + 1:02d}"


def _frozen(file: Path) -> dict[str, str]:
    """Names and versions in the output of `pip freeze`; other lines, such as paths, are left out.

    A line with a name only has no version: "".
    """
    found = {}
    for line in file.read_text().splitlines():
        if match := re.fullmatch(r"([\w.-]+)(?:==([\w.!+-]+))?\s*", line):
            found[_plain(match[1])] = match[2] or ""
    return found


def _name_and_version(file: str) -> tuple[str, str]:
    stem = file.removesuffix(".tar.gz")
    name, version = (stem.split("-")[:2]) if file.endswith(".whl") else stem.rsplit("-", 1)
    return _plain(name), version


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# ---- there ----


def store(transfer: Path, folder: Path) -> None:
    """Copy the parts of a transfer into the store, checked, and print what is still missing."""
    kit = _read_list(transfer)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / LIST).exists() and _read_list(folder) != kit:
        raise KitError(f"{folder} holds another kit than {transfer}; remove it, or name another folder")
    for part in _parts(kit):
        source, target = transfer / part["name"], folder / part["name"]
        if source.exists() and not target.exists():
            if _sha256(source) != part["sha256"]:
                raise KitError(f"{source} is damaged: its SHA-256 is not that of the list; send it again")
            partial = target.with_name(target.name + ".partial")
            shutil.copyfile(source, partial)
            partial.replace(target)
    shutil.copyfile(transfer / LIST, folder / LIST)
    missing = [part["name"] for part in _parts(kit) if not (folder / part["name"]).exists()]
    print(f"{folder}: {f'{len(missing)} parts are missing, such as {missing[0]}' if missing else 'complete'}")


def install(args: argparse.Namespace) -> None:
    """Join the parts, and install packages, pycuda and this project without a network."""
    kit = _read_list(args.store)
    mine = ".".join(map(str, sys.version_info[:2]))
    if kit["python"] != mine:
        raise KitError(f"the kit is for Python {kit['python']}, and this is {mine}; collect --python {mine}")
    wheels = join(args.store, args.store / "files")
    python = make_venv(args.venv) if args.venv else Path(sys.executable)
    # All that pip resolved when it collected them; nothing is looked for elsewhere.
    offline = ["install", "--no-index", "--no-deps", "--no-cache-dir", "--disable-pip-version-check", "-q"]
    _pip(*offline, *(str(file) for file in wheels if file.suffix == ".whl"), python=python)
    if not args.no_pycuda:
        _install_pycuda(wheels, python, args)
    _pip(*offline, "--no-build-isolation", "-e", str(ROOT), python=python)
    print(f"installed; next: {python} {ROOT / 'tests/gpu/bring_up.py'} OUTPUT")


def _install_pycuda(files: Sequence[Path], python: Path, args: argparse.Namespace) -> None:
    """Build pycuda, unless it is there already and was therefore not collected."""
    source = next((file for file in files if file.name.startswith("pycuda-")), None)
    if source is None:
        print("pycuda is not in the kit: the one that is there is used")
        return
    folders = [*args.venv.glob("lib/python*/site-packages")] if args.venv else []
    toolkit = args.cuda_root or find_toolkit(folders)
    build_pycuda(source, python, toolkit, args.driver or find_driver(toolkit))


def make_venv(folder: Path) -> Path:
    """A virtual environment that sees the packages of this Python, also if that is one itself."""
    if not folder.exists():
        # Without pip, which many systems keep from `venv`: this Python's pip installs into it.
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        (packages,) = (folder / "lib").glob("python*/site-packages")
        (packages / "parent.pth").write_text("".join(f"{path}\n" for path in site.getsitepackages()))
    return folder.resolve() / "bin" / "python"


def join(folder: Path, target: Path) -> list[Path]:
    """Write the files of a complete store into `target`, each checked; returns their paths."""
    kit = _read_list(folder)
    target.mkdir(exist_ok=True)
    for entry in kit["files"]:
        path = target / _safe(entry["name"])
        if path.exists() and _sha256(path) == entry["sha256"]:
            continue
        digest, partial = hashlib.sha256(), path.with_name(path.name + ".partial")
        with partial.open("wb") as out:
            for part in entry["parts"]:
                if not (folder / part["name"]).exists():
                    raise KitError(f"{part['name']} is missing; send the transfer that has it, and store it")
                block = (folder / part["name"]).read_bytes()
                digest.update(block)
                out.write(block)
        if digest.hexdigest() != entry["sha256"]:
            raise KitError(f"{entry['name']} is damaged; remove its parts from {folder} and send them again")
        partial.replace(path)
    return [target / entry["name"] for entry in kit["files"]]


def build_pycuda(source: Path, python: Path, toolkit: Path, driver: Path) -> None:
    """Compile pycuda against this machine's toolkit and driver, and install it.

    pycuda takes the folder of `nvcc` in PATH for the toolkit, and links the driver by the name libcuda.so,
    which only development packages have. It is built without CURAND, which nothing here uses.
    """
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        with tarfile.open(source) as archive:
            archive.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
        (tree,) = folder.iterdir()
        libraries = folder / "driver"
        libraries.mkdir()
        (libraries / "libcuda.so").symlink_to(driver.resolve())
        settings = {
            "CUDA_ROOT": str(toolkit), "CUDA_INC_DIR": [str(toolkit / "include")], "CUDA_ENABLE_GL": False,
            "CUDA_ENABLE_CURAND": False, "CUDADRV_LIB_DIR": [str(libraries)], "CUDADRV_LIBNAME": ["cuda"],
            "USE_SHIPPED_BOOST": True, "CXXFLAGS": ["-O1", "-w"], "LDFLAGS": [],
        }  # fmt: skip
        (tree / "siteconf.py").write_text("".join(f"{key} = {value!r}\n" for key, value in settings.items()))
        print(f"building {source.name} with {toolkit} and {driver}: some minutes", flush=True)
        options = ["--no-index", "--no-deps", "--no-build-isolation", "--no-cache-dir", "-q"]
        _pip("install", *options, str(tree), python=python)


def find_toolkit(packages: Sequence[Path] = ()) -> Path:
    """The CUDA toolkit: a folder with include/cuda.h.

    Args:
        packages: Folders of packages besides those of this Python.
    """
    named = [os.environ.get(name) for name in ("CUDA_PATH", "CUDA_HOME", "CUDA_ROOT")]
    places = [Path(name) for name in named if name]
    places += [*sorted(Path("/usr/local").glob("cuda*")), Path("/usr"), Path("/opt/cuda")]
    if nvcc := shutil.which("nvcc"):
        places.append(Path(nvcc).resolve().parents[1])
    # Wheels of NVIDIA have the headers as well.
    folders = [*packages, *map(Path, sys.path)]
    places += [folder / "nvidia" / name for folder in folders for name in ("cu13", "cuda_runtime")]
    for place in places:
        if (place / "include" / "cuda.h").is_file():
            return place
    raise KitError("no CUDA toolkit with include/cuda.h was found; name it: --cuda-root DIR")


def find_driver(toolkit: Path) -> Path:
    """The driver's library, or the stub of it in a toolkit."""
    folders = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    folders += ["/usr/local/nvidia/lib64", "/usr/local/nvidia/lib", "/usr/lib/wsl/lib"]
    ldconfig = shutil.which("ldconfig") or shutil.which("/sbin/ldconfig")
    listed = subprocess.run([ldconfig, "-p"], capture_output=True, text=True).stdout if ldconfig else ""
    found = [Path(match) for match in re.findall(r"libcuda\.so\S* .*=> (\S+)", listed)]
    found += [Path(folder) / name for folder in folders if folder for name in ("libcuda.so.1", "libcuda.so")]
    found += [toolkit / lib / "stubs" / "libcuda.so" for lib in ("lib64", "lib")]
    for path in found:
        if path.is_file():
            return path
    raise KitError("no libcuda.so.1 was found: is the driver installed? Otherwise name it: --driver FILE")


def _read_list(folder: Path) -> dict[str, Any]:
    try:
        kit: dict[str, Any] = json.loads((folder / LIST).read_text())
    except (OSError, ValueError) as error:
        raise KitError(f"{folder / LIST} cannot be read: {error}") from error
    if kit.get(KIT) != 1:
        raise KitError(f"{folder / LIST} is no list of a kit")
    return kit


def _parts(kit: dict[str, Any]) -> list[dict[str, Any]]:
    parts = [part for entry in kit["files"] for part in entry["parts"]]
    for part in parts:
        _safe(part["name"])
    return parts


def _safe(name: str) -> str:
    """A name that is one file in its folder."""
    if not re.fullmatch(r"[\w.+!-]+", name) or name.startswith("."):
        raise KitError(f"{name!r} is no name of a file of a kit")
    return name


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(MIB):
            digest.update(block)
    return digest.hexdigest()


def _pip(*arguments: str, python: Path | str = sys.executable) -> None:
    command = [sys.executable, "-m", "pip", "--python", str(python), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if "error" in line.lower()]
        raise KitError(f"pip {arguments[0]} failed: {(lines or done.stderr.splitlines()[-1:])[0]}")


if __name__ == "__main__":
    raise SystemExit(main())
