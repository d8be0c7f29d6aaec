"""Derive the reference data in this folder from the whole reference set (README.md says what it holds).

Usage: python tests/data/make_reference.py REFERENCE_FOLDER
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
TABLES = "state_dicts.json.gz"
Arrays = dict[str, np.ndarray]


def thin(arrays: Arrays, stem: str, factor: int, axes: int = 1) -> Arrays:
    """Every `factor`-th entry of `stem_sN` along its first (or last two) axes, as `stem_s(N * factor)`."""
    key = next(key for key in arrays if re.fullmatch(rf"{stem}_s\d+", key))
    step = int(key.rpartition("_s")[2])
    return {f"{stem}_s{step * factor}": arrays[key][(slice(None, None, factor),) * axes]}


def golden(arrays: Arrays) -> Arrays:
    """One image through the network: fewer entries of the tensors; all statistics and detections."""
    kept = {
        key: value
        for key, value in arrays.items()
        if re.search(r"_(stat|pick|shape)$|^img_|^n_|^(fast|trad|cc)_(det|pp)_", key)
        and not re.search(r"softmax|trad_pp_rle", key)
    }
    for stem in ("loc", "conf_logits", "coef_tanh", "priors"):
        kept |= thin(arrays, stem, 2)
    kept |= thin(arrays, "proto", 2, axes=2)
    image = arrays["x_s5"]
    return kept | {"x_s20": image[:, ::4, ::4]}


def boxes(arrays: Arrays) -> Arrays:
    """Detections of an image that is not here: relative boxes and what they are in pixels."""
    keys = [f"{nms}_{key}" for nms in ("fast", "trad", "cc") for key in ("det_box", "pp_box")]
    return {key: arrays[key] for key in ("img_hw", *keys)}


def matches(arrays: Arrays) -> Arrays:
    """Which prior learns which instance, of two COCO images; needs the boxes only."""
    names = r"target\d|num_crowds|match\d_(conf_t|idx_t|pos_idx|loc_t_pos)"
    return {key: value for key, value in arrays.items() if re.fullmatch(names, key)}


def unit(arrays: Arrays) -> Arrays:
    """The self-contained case, without intermediate values, and with a part of the largest gradient."""
    dropped = r"raw_\w|match\d_(iou|crowd_iof|loc_t)|sanitize_\w+|grad_segm"
    kept = {key: value for key, value in arrays.items() if not re.fullmatch(dropped, key)}
    return kept | {"grad_segm_s7": arrays["grad_segm"].reshape(-1)[::7]}


def priors(arrays: Arrays) -> Arrays:
    """Some priors, and the digest of all as little-endian float32."""
    values = arrays["priors"].astype("<f4")
    digest = hashlib.sha256(values.tobytes()).digest()
    return {"priors_s20": values[::20], "sha256": np.frombuffer(digest, np.uint8)}


def derive(reference: Path) -> dict[str, Arrays]:
    """The arrays of each file of this folder, from the folder of the whole set."""
    found = {}
    for pattern, name, make in (
        (r"golden_\w+_synth", None, golden),
        (r"golden_(\w+_coco)", r"boxes_\1", boxes),
        (r"loss_(\w+)", r"matches_\1", matches),
        (r"unit_loss_detect", None, unit),
        (r"priors_\w+", None, priors),
    ):
        for path in sorted(reference.glob("*.npz")):
            if re.fullmatch(pattern, path.stem):
                stem = path.stem if name is None else re.sub(pattern, name, path.stem)
                found[f"{stem}.npz"] = make(dict(np.load(path)))
    return found


def tables(reference: Path) -> dict[str, dict]:
    """What the original says of each configuration, by name."""
    paths = sorted(reference.glob("state_dict_*_config.json"))
    return {re.sub("state_dict_|_config$", "", path.stem): json.loads(path.read_text()) for path in paths}


def main() -> None:
    (reference,) = map(Path, sys.argv[1:])
    for name, arrays in derive(reference).items():
        np.savez_compressed(HERE / name, **arrays)  # type: ignore[arg-type]
    text = json.dumps(tables(reference), separators=(",", ":"))
    (HERE / TABLES).write_bytes(gzip.compress(text.encode(), 9, mtime=0))


if __name__ == "__main__":
    main()
