"""What a resumed or fine-tuned training takes from the checkpoint, and what it may change."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from yolact.cli import evaluate
from yolact.cli.train import main
from yolact.config import Config
from yolact.dataset_tools.synthetic import make_shapes_dataset
from yolact.registry import get_config
from yolact.train.checkpoint import Checkpoints, find_checkpoint
from yolact.train.resume import check_changes
from yolact.weights.load import load_checkpoint
from yolact_runtime.errors import UsageError, YolactError

Capture = pytest.CaptureFixture[str]
CPU = ("--device", "cpu", "--threads", "1", "--workers", "0")


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory, shapes: Path) -> Path:
    """The folder of a training of two iterations with its own settings."""
    folder = tmp_path_factory.mktemp("begun")
    own = ("--batch-size", "4", "--lr", "0.002", "--iterations", "2", "--set", "train.weight_decay=0.01")
    own += (
        "--set",
        "model.input_size=96",
        "--set",
        "augment.flip=false",
        "--set",
        "train.cache_samples=false",
    )
    config = ("--config", "yolact_tiny", "--dataset", str(shapes), "--save-folder", str(folder))
    assert main([*config, *own, *CPU]) == 0
    return folder


@pytest.fixture()
def continued(begun: Path, tmp_path: Path) -> Callable[..., int]:
    """`continued(*options)`: resume a copy of that training in `tmp_path`; returns the exit code."""
    for file in begun.glob("yolact_tiny*"):
        shutil.copy(file, tmp_path)

    def continued(*options: str) -> int:
        return main(["--save-folder", str(tmp_path), "--resume", "last", "--iterations", "3", *CPU, *options])

    return continued


def test_everything_that_is_not_given_is_the_checkpoints(
    continued: Any, begun: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert continued() == 0
    saved, before = (load_checkpoint(find_checkpoint("last", folder)).config for folder in (tmp_path, begun))
    assert replace(saved, train=replace(saved.train, iterations=2, workers=before.train.workers)) == before
    output = capsys.readouterr().err.splitlines()
    changed = [line for line in output if "changed since" in line]
    assert len(changed) == 1
    assert changed[0].endswith("yolact_tiny_0_2.pth: train.iterations 2 -> 3")
    # The first run's options, none of which is given again.
    (kept,) = [line for line in output if "and not as in yolact_tiny" in line]
    for name in ("model.input_size 96", "train.lr 0.002", "train.weight_decay 0.01", "augment.flip False"):
        assert name in kept


@pytest.mark.parametrize(
    ("options", "change"),
    [
        (("--set", "train.weight_decay=0.1"), "train.weight_decay 0.01 -> 0.1"),
        (("--set", "train.momentum=0.5"), "train.momentum 0.9 -> 0.5"),
        (("--lr", "0.5"), "train.lr 0.002 -> 0.5"),
        (("--batch-size", "6"), "train.batch_size 4 -> 6"),
        (("--amp", "bf16"), "train.amp none -> bf16"),
        (("--set", "train.ema_decay=0.9"), "train.ema_decay 0.0 -> 0.9"),
        (("--save-every", "1", "--keep-last", "9"), "train.keep_last 5 -> 9"),
        (("--set", "loss.mask_weight=2"), "loss.mask_weight 6.0 -> 2.0"),
        (("--set", "augment.mirror=false"), "augment.mirror True -> False"),
    ],
)
def test_what_is_given_takes_effect_and_is_named(
    options: tuple[str, ...], change: str, continued: Any, tmp_path: Path, capsys: Capture
) -> None:
    assert continued(*options) == 0
    assert change in capsys.readouterr().err
    saved = load_checkpoint(find_checkpoint("last", tmp_path))
    name, _, value = change.partition(" ")
    section, field = name.split(".")
    used = getattr(getattr(saved.config, section), field)
    assert str(used) == value.rpartition(" ")[2]
    (group,) = saved.training["optimizer"]["param_groups"]
    train = saved.config.train
    assert (group["weight_decay"], group["betas"][0]) == (train.weight_decay, train.momentum)
    rate = json.loads((tmp_path / "yolact_tiny.jsonl").read_text().splitlines()[-1])["lr"]
    # The third of 3 iterations is one of the warm-up.
    scaled = train.scaled()
    assert rate == pytest.approx(scaled.warmup_lr + (scaled.lr - scaled.warmup_lr) * 2 / 50)
    assert group["lr"] == rate


@pytest.mark.parametrize(
    ("options", "values"),
    [
        (("--set", "model.input_size=128"), ("model.input_size is 96", "128")),
        (("--set", "train.optimizer=sgd"), ("train.optimizer is adamw", "sgd")),
        (("--set", "model.backbone.name=resnet50"), ("model.backbone.name is tiny", "resnet50")),
        (("--seed", "3"), ("train.seed is 0", "3")),
        (("--val-fraction", "0.5"), ("train.val_fraction is 0.0", "0.5")),
        (("--config", "yolact_base"), ("yolact_tiny", "yolact_base")),
    ],
)
def test_what_cannot_change_is_one_line(
    options: tuple[str, ...], values: tuple[str, str], continued: Any, tmp_path: Path, capsys: Capture
) -> None:
    before = sorted(tmp_path.iterdir())
    # With a configuration, `last` is the last one of that.
    resume = ("--resume", str(tmp_path / "yolact_tiny_0_2.pth")) if "--config" in options else ()
    assert continued(*options, *resume) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert all(value in last for value in values)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("change", ["names", "ids", "order", "more"])
def test_other_classes_are_an_error(
    change: str, shapes: Path, continued: Any, tmp_path: Path, capsys: Capture
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shapes, copy)
    for file in (copy / "annotations").iterdir():
        content = json.loads(file.read_text())
        names = [category["name"] for category in content["categories"]]
        if change == "names":
            content["categories"][0]["name"] = "disc"
        elif change == "order":
            for category, name in zip(content["categories"], reversed(names), strict=True):
                category["name"] = name
        elif change == "more":
            content["categories"].append({"id": 77, "name": "star"})
        else:
            for entry in (*content["categories"], *content["annotations"]):
                key = "id" if "name" in entry else "category_id"
                entry[key] += 20
        file.write_text(json.dumps(content))
    assert continued("--dataset", str(copy)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "circle (1), square (4), triangle (9)" in last
    assert "--init-from" in last


def test_another_place_of_the_same_data_is_named(
    shapes: Path, continued: Any, tmp_path: Path, capsys: Capture
) -> None:
    shutil.copytree(shapes, tmp_path / "copy")
    assert continued("--dataset", str(tmp_path / "copy")) == 0
    assert f"dataset {shapes}/annotations/instances_train.json -> {tmp_path}/copy" in capsys.readouterr().err


def test_a_complete_training_has_nothing_left_to_do(continued: Any, tmp_path: Path, capsys: Capture) -> None:
    for resume, iterations, code in (("auto", "2", 0), ("last", "2", 0), ("auto", "1", 0), ("last", "1", 1)):
        assert continued("--resume", resume, "--iterations", iterations) == code
        output = capsys.readouterr().err
        assert ("the training is complete" if code == 0 else "nothing to train") in output.splitlines()[-1]
    assert [path.name for path in tmp_path.glob("*.pth")] == ["yolact_tiny_0_2.pth"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": {}}, "its optimizer does not fit adamw"),
        ({"optimizer": {"state": {}, "param_groups": []}}, "its optimizer does not fit adamw"),
        ({"optimizer": {"param_groups": 3, "state": None}}, "its optimizer does not fit adamw"),
        ({"optimizer": [1]}, "optimizer is a list"),
        (
            {"optimizer": {"state": {0: {"step": 1}}, "param_groups": "own"}},
            "moments step instead of exp_avg",
        ),
        ({"optimizer": {"state": {-1: {}}, "param_groups": "own"}}, "a parameter -1"),
        (
            {"optimizer": {"state": {0: {}}, "param_groups": [{"params": torch.zeros(3)}]}},
            "does not fit adamw",
        ),
        ({"best": "high"}, "best is a str"),
        ({"best": float("nan")}, "best is nan"),
        ({"ema_updates": -10}, "ema_updates is not 0 to"),
        ({"ema_updates": 10**400}, "ema_updates is not 0 to"),
        ({"ema_updates": None, "written": {"a": 1}}, "written is a dict"),
    ],
)
def test_a_damaged_state_is_one_line(
    change: dict[str, Any], message: str, continued: Any, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "yolact_tiny_0_2.pth"
    content = torch.load(path, weights_only=True)
    if isinstance(change.get("optimizer"), dict) and change["optimizer"].get("param_groups") == "own":
        groups = content["training"]["optimizer"]["param_groups"]
        change = {"optimizer": {**change["optimizer"], "param_groups": groups}}
    torch.save({**content, "training": {**content["training"], **change}}, path)
    assert continued() == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert message in last
    assert "--init-from" in last


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(3), "exp_avg of shape (3,)"),
        (float("nan"), "not finite"),
        (3, "exp_avg is no tensor of floats"),
        (torch.zeros(3).to_sparse(), "exp_avg is no tensor of floats"),
        (None, "exp_avg is no tensor of floats"),
    ],
)
def test_moments_of_another_network_are_one_line(
    value: Any, message: str, continued: Any, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "yolact_tiny_0_2.pth"
    content = torch.load(path, weights_only=True)
    moments = content["training"]["optimizer"]["state"][0]
    moments["exp_avg"] = torch.full_like(moments["exp_avg"], value) if isinstance(value, float) else value
    torch.save(content, path)
    assert continued() == 1
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_settings_of_the_optimizer_are_not_the_files(continued: Any, tmp_path: Path) -> None:
    path = tmp_path / "yolact_tiny_0_2.pth"
    content = torch.load(path, weights_only=True)
    content["training"]["optimizer"]["param_groups"][0] |= {"eps": "x", "betas": (2.0, "y"), "maximize": True}
    torch.save(content, path)
    assert continued() == 0
    (group,) = load_checkpoint(find_checkpoint("last", tmp_path)).training["optimizer"]["param_groups"]
    assert (group["betas"], group["maximize"]) == ((0.9, 0.99), False)


def test_another_training_in_the_folder_is_reported(
    begun: Path, shapes: Path, tmp_path: Path, capsys: Capture
) -> None:
    shutil.copy(begun / "yolact_tiny_0_2.pth", tmp_path / "yolact_tiny_9_99.pth")
    options = ("--dataset", str(shapes), "--iterations", "1", "--save-folder", str(tmp_path), *CPU)
    assert main(["--config", "yolact_tiny", *options]) == 0
    assert capsys.readouterr().err.count("yolact_tiny_9_99.pth is further than this run") == 1


def test_only_checkpoints_of_the_run_are_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "w"
    folder.mkdir()

    def write(path: Path, run: object) -> None:
        path.parent.mkdir(exist_ok=True)
        torch.save({"training": {"run": run}}, path)

    own = ["yolact_tiny_1_2.pth", "yolact_tiny_1_2_interrupt.pth"]
    for name in (
        *own,
        "yolact_base_1_2.pth",
        "notes_1_2.pth",
        "yolact_tiny_best.pth",
        "../x.pth",
        "sub/a.pth",
    ):
        write(folder / name, "mine")
    write(folder / "yolact_tiny_1_3.pth", "another")
    write(folder / "yolact_tiny_1_4.pth", "")
    torch.save(torch.zeros(3), folder / "yolact_tiny_1_5.pth")
    (folder / "yolact_tiny_1_6.pth").write_text("precious")
    (folder / "yolact_tiny_1_7.pth").symlink_to(folder / own[0])
    (folder / "yolact_tiny_1_8.pth").mkdir()
    names: list[Any] = [str(path) for path in (folder / own[0], tmp_path / "x.pth")]
    names += [f"../w/{own[0]}", f"./{own[0]}", f"{own[0]}/..", "yolact_tiny_1_\u00b2.pth", "a\0", "", 3, None]
    names += [["a"], "yolact_tiny_1_9.pth", *(str(path.relative_to(folder)) for path in folder.rglob("*"))]
    assert sorted(Checkpoints(folder, "yolact_tiny", 1, names, "mine").written) == own
    assert Checkpoints(folder, "yolact_tiny", 1, names).written == []


def test_checkpoints_that_a_killed_process_had_no_time_to_delete_are_deleted_later(
    continued: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process ends when the next checkpoint is there and the old one still has to be deleted."""
    unlink = Path.unlink

    class Killed(BaseException):
        pass

    def killed(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".pth":
            raise Killed
        unlink(path, missing_ok)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "unlink", killed)
        continued("--keep-last", "1")
    assert {file.name for file in tmp_path.glob("*_?.pth")} == {"yolact_tiny_0_2.pth", "yolact_tiny_0_3.pth"}
    assert continued("--iterations", "4", "--keep-last", "1") == 0
    assert {file.name for file in tmp_path.glob("*_?.pth")} == {"yolact_tiny_0_4.pth"}


def test_checkpoints_of_another_run_in_the_folder_are_kept(continued: Any, tmp_path: Path) -> None:
    path, other = tmp_path / "yolact_tiny_0_2.pth", tmp_path / "yolact_tiny_0_1.pth"
    content = torch.load(path, weights_only=True)
    torch.save({**content, "training": {**content["training"], "run": "another"}}, other)
    content["training"]["written"] = [other.name, path.name]
    torch.save(content, path)
    assert continued("--keep-last", "1") == 0
    assert {file.name for file in tmp_path.glob("*_?.pth")} == {other.name, "yolact_tiny_0_3.pth"}


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        "3",
        '{"iteration": "1"}',
        '{"iteration": [1]}',
        "\udcff\udcfe",
        '{"iteration": 1e999}',
        "\0",
    ],
    ids=lambda line: line[:20],
)
def test_lines_of_the_log_that_are_of_no_training_stay(
    line: str, continued: Any, tmp_path: Path, capsys: Capture
) -> None:
    journal = tmp_path / "yolact_tiny.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    strange = line.encode(errors="surrogateescape") + b"\n"
    journal.write_bytes(b"".join([*lines[:1], strange, *lines[1:], b'{"iteration": 2, "torn']))
    assert continued() == 0
    assert journal.read_bytes().splitlines(keepends=True)[:-1] == [*lines[:1], strange, *lines[1:]]
    assert "1 line not of a training" in capsys.readouterr().err


def test_a_file_that_is_no_log_is_kept(continued: Any, tmp_path: Path, capsys: Capture) -> None:
    journal = tmp_path / "yolact_tiny.jsonl"
    journal.write_bytes(b"x" * 3_000_000)
    assert continued() == 1
    assert journal.stat().st_size == 3_000_000
    assert "is no log of a training" in capsys.readouterr().err


def test_files_of_another_folder_are_not_deleted(continued: Any, begun: Path, tmp_path: Path) -> None:
    path = begun / "yolact_tiny_0_2.pth"
    assert continued("--resume", str(path), "--keep-last", "1") == 0
    names = {file.name for file in tmp_path.glob("*.pth")}
    assert names == {"yolact_tiny_0_2.pth", "yolact_tiny_0_3.pth"}
    assert path.exists()


def test_without_a_configuration_the_folder_must_have_a_single_one(tmp_path: Path) -> None:
    for name in ("tiny_0_9", "base_0_3", "tiny_best"):
        (tmp_path / f"yolact_{name}.pth").touch()
    with pytest.raises(UsageError, match="yolact_base, yolact_tiny; give --config"):
        find_checkpoint("last", tmp_path)
    assert find_checkpoint("last", tmp_path, "yolact_base").name == "yolact_base_0_3.pth"
    with pytest.raises(YolactError, match=str(tmp_path)):
        find_checkpoint("interrupt", tmp_path)


def test_changes_of_all_sections_are_listed() -> None:
    config: Config = get_config("yolact_base")
    given = replace(
        config, loss=replace(config.loss, max_masks=7), detect=replace(config.detect, nms_top_k=9)
    )
    assert check_changes(config, config, Path("x.pth")) == ""
    assert check_changes(config, given, Path("x.pth")) == "detect.nms_top_k 200 -> 9, loss.max_masks 100 -> 7"


@pytest.mark.slow
def test_fine_tuning_takes_the_network_of_the_file(
    begun: Path, shapes: Path, tmp_path: Path, capsys: Capture
) -> None:
    """By the file's own configuration, and for weights without one by --config, whatever their name."""
    path = begun / "yolact_tiny_0_2.pth"
    options = ("--dataset", str(shapes), "--iterations", "1", "--save-folder", str(tmp_path), *CPU)
    options += ("--batch-size", "4")
    assert main([*options, "--init-from", str(path)]) == 0
    tuned = load_checkpoint(tmp_path / "yolact_tiny_0_1.pth").config
    assert tuned.model == load_checkpoint(path).config.model
    assert tuned.train.weight_decay == get_config("yolact_tiny").train.weight_decay
    assert main([*options, "--init-from", str(path), "--config", "yolact_tiny"]) == 0
    assert "model.input_size 96 -> 128" in capsys.readouterr().err
    bare = tmp_path / "mine.pth"
    torch.save(load_checkpoint(path).model, bare)
    assert main([*options, "--init-from", str(bare)]) == 2
    assert "give --config" in capsys.readouterr().err
    assert main([*options, "--init-from", str(bare), "--config", "yolact_tiny"]) == 0
    assert "which it does not name" in capsys.readouterr().err


def test_a_validation_part_and_a_held_out_part_exclude_each_other(
    shapes: Path, tmp_path: Path, capsys: Capture
) -> None:
    options = ("--dataset", str(shapes), "--iterations", "1", "--save-folder", str(tmp_path), *CPU)
    assert main(["--config", "yolact_tiny", *options, "--val-fraction", "0.1"]) == 2
    assert "has a validation part" in capsys.readouterr().err
    assert main(["--config", "yolact_tiny", *options, "--val-fraction", "1.5"]) == 2
    assert "train.val_fraction = 1.5; allowed: 0 to 0.9" in capsys.readouterr().err


@pytest.mark.slow
def test_a_held_out_part_is_validated_on_and_evaluated(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_shapes_dataset(tmp_path / "data", train_images=20, val_images=1, seed=3)
    shutil.rmtree("data/val")
    Path("data/annotations/instances_val.json").unlink()
    options = ("--config", "yolact_tiny", "--dataset", "data", "--iterations", "4", "--batch-size", "4")
    options += ("--val-fraction", "0.25", "--validate-every", "1", "--set", "train.pictures=0", *CPU)
    assert main([*options]) == 0
    assert "training yolact_tiny on 15 images" in capsys.readouterr().err
    records = [json.loads(line) for line in Path("weights/yolact_tiny.jsonl").read_text().splitlines()]
    trained = [record["validation"] for record in records if "validation" in record][-1]
    arguments = ["--engine", "weights/yolact_tiny_1_4.pth", "--json", "m.json"]
    assert evaluate.main([*arguments, "--val-fraction", "0.25"]) == 0
    measured = json.loads(Path("m.json").read_text())
    assert measured["images"] == 5
    assert measured["mask"]["ap"] == trained["mask_ap"]
    assert evaluate.main([*arguments, "--dataset", "data"]) == 2
    assert "--val-fraction" in capsys.readouterr().err


def test_the_folder_data_is_the_default(
    shapes: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The original's layout of one's own dataset, which trains without validation."""
    monkeypatch.chdir(tmp_path)
    options = ("--config", "yolact_tiny_config", "--iterations", "1", "--batch_size=4", *CPU)
    assert main([*options]) == 1
    assert str(tmp_path / "data") in capsys.readouterr().err
    shutil.copytree(shapes / "train", "data/train_images")
    shutil.copy(shapes / "annotations/instances_train.json", "data/pascal_train.json")
    assert main([*options]) == 0
    assert "has no validation part" not in capsys.readouterr().err  # it does not validate anyway
    saved = load_checkpoint(Path("weights/yolact_tiny_0_1.pth")).config
    assert saved.dataset.train_annotations == "data/pascal_train.json"
    assert main([*options, "--validate-every", "1", "--save-folder", "w"]) == 0
    assert capsys.readouterr().err.count("has no validation part") == 1
