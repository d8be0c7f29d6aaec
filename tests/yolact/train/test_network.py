"""The fast order of the training step computes what the network does layer by layer."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from yolact.config import BackboneConfig
from yolact.model import Yolact
from yolact.registry import get_config
from yolact.train import network, winograd
from yolact.train.network import forward_train


@pytest.mark.parametrize("shape", [(3, 5, 9, 14, 7), (1, 4, 8, 8, 4), (2, 3, 1, 5, 6)])
@pytest.mark.parametrize("chunk", [1, 200_000], ids=["row by row", "whole"])
def test_winograd_is_the_convolution(
    shape: tuple[int, ...], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "_CHUNK_BYTES", chunk)
    torch.manual_seed(0)
    images, channels, height, width, filters = shape
    inputs = [
        torch.randn(size, dtype=torch.double, requires_grad=True)
        for size in ((images, channels, height, width), (filters, channels, 3, 3), (filters,))
    ]
    expected, result = F.conv2d(*inputs, padding=1), winograd.convolve(*inputs)
    seed = torch.randn_like(expected)
    assert torch.allclose(result, expected, atol=1e-12)
    pairs = zip(
        torch.autograd.grad(result, inputs, seed), torch.autograd.grad(expected, inputs, seed), strict=True
    )
    for own, other in pairs:
        assert torch.allclose(own, other, atol=1e-11)
    # Only what is asked for.
    frozen = inputs[0].detach(), inputs[1], None
    (own,) = torch.autograd.grad(winograd.convolve(*frozen), inputs[1], seed)
    (other,) = torch.autograd.grad(F.conv2d(*frozen, padding=1), inputs[1], seed)
    assert torch.allclose(own, other, atol=1e-11)


def test_winograd_has_gradients_of_the_first_order() -> None:
    x = torch.randn(1, 3, 5, 5, requires_grad=True)
    frozen = torch.randn(2, 3, 3, 3)
    (own,) = torch.autograd.grad(winograd.convolve(x, frozen, None).sum(), x)
    (other,) = torch.autograd.grad(F.conv2d(x, frozen, padding=1).sum(), x)
    assert torch.allclose(own, other, atol=1e-5)
    loss = winograd.convolve(x, frozen, None).pow(2).sum()
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_winograd_rounds_like_a_direct_convolution() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(1, 128, 36, 36), torch.randn(128, 128, 3, 3)
    assert winograd.suits(x, weight)
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    error = (winograd.convolve(x, weight, None) - exact).norm() / exact.norm()
    assert error < 3e-6


def small_network(backbone: str) -> Yolact:
    torch.manual_seed(0)
    config = get_config("yolact_resnet50")
    # Deformable blocks with the ResNet, so that both kinds of blocks take part.
    deformable = (0, 1, 0, 0) if backbone == "resnet50" else (0, 0, 0, 0)
    parts = BackboneConfig(name=backbone, deformable=deformable)
    return Yolact(
        replace(config, model=replace(config.model, backbone=parts, input_size=96, fpn_features=96))
    )


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
@pytest.mark.parametrize("backbone", ["resnet50", "tiny"])
def test_outputs_and_gradients_are_those_of_the_layers(
    backbone: str, frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winograd, "suits", lambda x, weight: min(weight.shape[:2]) >= 96)
    plain = small_network(backbone).double().train()
    for module in plain.modules():  # scales, shifts and statistics that matter
        if isinstance(module, torch.nn.BatchNorm2d):
            for values in (module.weight, module.bias, module.running_mean, module.running_var):
                torch.nn.init.uniform_(values, 0.5, 1.0)  # type: ignore[arg-type]
    if frozen:
        plain.freeze_batch_norm()
    fast = copy.deepcopy(plain)
    images = torch.randn(2, 3, 96, 96, dtype=torch.double)
    results = []
    for outputs in (plain.forward_train(images), forward_train(fast, images)):
        tensors = [*outputs[0], outputs[1]]
        torch.manual_seed(1)
        sum((tensor * torch.randn(tensor.shape)).sum() for tensor in tensors).backward()
        results.append(tensors)
    for own, expected in zip(*results[::-1], strict=True):
        assert own.shape == expected.shape
        assert (own - expected).norm() <= 1e-9 * expected.norm()
    for (name, p), q in zip(plain.named_parameters(), fast.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None and q.grad is not None:
            assert (p.grad - q.grad).norm() <= 1e-8 * p.grad.norm() + 1e-12, name
    buffers = zip(plain.named_buffers(), fast.buffers(), strict=True)
    assert all(torch.allclose(a.double(), b.double()) for (_, a), b in buffers)  # the same statistics
    if frozen:
        norms = [m for m in fast.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        assert all(m.weight.grad is None and m.bias.grad is None for m in norms)


def test_the_convolutions_that_winograd_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, convolve = [], winograd.convolve

    def count(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        calls.append((weight.shape[0], tuple(x.shape[2:])))
        return convolve(x, weight, bias)

    monkeypatch.setattr(winograd, "convolve", count)
    model = small_network("tiny").train()
    with torch.no_grad():
        forward_train(model, torch.randn(2, 3, 224, 224))
    head = model.prediction_layers[0]
    merged = sum(layer.out_channels for layer in (head.bbox_layer, head.conf_layer, head.mask_layer))  # type: ignore[union-attr]
    # 2 images of 7 x 7 tiles are enough; those of the next level are not.
    assert (96, (28, 28)) in calls and (merged, (28, 28)) in calls
    assert min(size for _, (size, _) in calls) == 28


def test_reduced_precision_keeps_to_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network.winograd, "convolve", None)  # fails if called
    model = small_network("tiny").train()
    images = torch.randn(4, 3, 96, 96)
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = forward_train(model, images)
    assert output.logits.dtype == torch.bfloat16
