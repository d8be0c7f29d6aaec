import json

import pytest

from yolact.dataset_tools.synthetic import make_shapes_dataset
from yolact_bench import cli, training

# What the worker asks a checkout for. This network has no weights of the model's, and its loss counts steps.
CHECKOUT = {
    "data/config.py": """
class cfg:
    positive_iou_threshold, negative_iou_threshold, ohem_negpos_ratio = 0.5, 0.4, 3
    momentum, decay = 0.9, 5e-4
def set_cfg(name):
    print("configured", name)
    assert name == "yolact_tiny_config"
""",
    "data/__init__.py": "",
    "layers/__init__.py": "",
    "layers/modules/__init__.py": """
from data.config import cfg
from .multibox_loss import MultiBoxLoss
""",
    "layers/modules/multibox_loss.py": """
import torch
class MultiBoxLoss:
    def __init__(self, classes, *thresholds):
        self.classes, self.steps = classes, 0
    def __call__(self, net, output, targets, masks, crowds):
        self.steps += 1
        assert output.shape[0] == len(targets) == len(masks) == len(crowds) == 2
        for target, mask in zip(targets, masks):
            assert target.shape == (len(mask), 5) and mask.shape[1:] == output.shape[1:]
            assert 0 <= target[:, :4].min() and target[:, :4].max() <= 1
            assert -1 <= target[:, 4].min() and target[:, 4].max() < self.classes - 1
        targets.clear(), masks.clear()
        return {"S": output.mean() * 0 + self.steps}
""",
    "yolact.py": """
import torch
import pyximport
pyximport.install()
torch.cuda.current_device()
class Yolact(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
    def load_weights(self, path):
        assert "proto_net.0.weight" in torch.load(path)
    def forward(self, images):
        return images[:, 0] * self.scale
""",
}


@pytest.fixture
def options(tmp_path):
    make_shapes_dataset(tmp_path / "shapes", 2, 1)
    return [
        *("--dataset", str(tmp_path / "shapes"), "--config", "yolact_tiny", "--batch-size", "2"),
        *("--runs", "1", "--seconds", "0.1", "--device", "cpu"),
    ]


@pytest.fixture
def checkout(tmp_path):
    for name, text in CHECKOUT.items():
        path = tmp_path / "checkout" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "checkout"


def test_times_steps_and_stages(options, checkout, tmp_path, capsys, monkeypatch):
    path = tmp_path / "figures.json"
    staged, stages = [], training.Trainer.stages
    monkeypatch.setattr(
        training.Trainer, "stages", lambda self, rounds: staged.append(self) or stages(self, rounds)
    )
    options = [*options, "--set", "train.fast=false"]
    assert cli.main(["training", *options, "--original", str(checkout), "--json", str(path)]) == 0
    out = capsys.readouterr().out
    assert "batch 2" in out and "CPU / original" in " ".join(out.split())
    assert [(one.settings.fast, one.settings.amp) for one in staged] == [(False, "none")]
    figures = json.loads(path.read_text())
    assert set(figures["steps"]) == {"original", "plain", "float32", "bf16"}
    assert set(figures["stages_s"]) == set(training.STAGES)
    assert all(seconds > 0 for seconds in figures["stages_s"].values())
    # The original's steps were counted by its loss: three to warm up come first.
    assert figures["losses"]["original"] == 4
    assert any(line.split()[:1] == ["bf16"] for line in out.splitlines())
    losses = figures["losses"]
    assert losses["float32"] == pytest.approx(losses["plain"], rel=1e-4)
    assert losses["bf16"] == pytest.approx(losses["plain"], rel=0.02)


def test_says_what_the_original_died_of(options, checkout, capsys):
    (checkout / "yolact.py").write_text("raise SystemError('no such thing')")
    assert cli.main(["training", *options, "--original", str(checkout)]) == 1
    assert "the original ended: SystemError: no such thing" in capsys.readouterr().err


def test_wrong_use_is_one_line(options, tmp_path, capsys):
    assert cli.main(["training", *options, "--original", str(tmp_path)]) == 1
    assert "not a checkout" in capsys.readouterr().err
    assert cli.main(["training", *options, "--batch-size", "3"]) == 1
    assert "--batch-size 3" in capsys.readouterr().err
