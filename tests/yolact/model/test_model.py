"""The network's parts: shapes, keys, deformable convolution, batch norm."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from yolact.config import BackboneConfig, Config
from yolact.model import Yolact
from yolact.model.backbone import DeformConv, build_backbone
from yolact.model.priors import prototype_size
from yolact.registry import configs, get_config
from yolact.settings import override
from yolact_runtime.errors import UsageError


@pytest.mark.slow
@pytest.mark.parametrize("config", configs().values(), ids=lambda config: config.name)
def test_forward_shapes(config: Config) -> None:
    # Small and odd, so that every stride-2 layer has to round.
    size = 251 if config.model.mask_iou else 75
    config = override(config, [f"model.input_size={size}"])
    model = Yolact(config).eval()
    x = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        output, semantic = model.forward_train(x)
        again = model(x)
    p, c, m = len(model.priors), config.num_classes, config.model.num_prototypes
    assert model.priors.shape == (p, 4)
    assert output.loc.shape == (2, p, 4)
    assert output.logits.shape == (2, p, c + 1)
    assert output.coefficients.shape == (2, p, m)
    assert output.prototypes.shape == (2, *prototype_size(size), m)
    assert semantic.shape == (2, c, -(-size // 8), -(-size // 8))
    assert output.prototypes.min() >= 0
    assert output.coefficients.abs().max() <= 1
    for a, b in zip(output, again, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("size", [(40, 90), (131, 64)])
def test_forward_shapes_of_inputs_that_are_not_square(size: tuple[int, int]) -> None:
    config = override(get_config("yolact_tiny"), [f"model.input_size={list(size)}"])
    x = torch.randn(2, 3, *size)
    plain = Yolact(config).eval()
    for scale, enlarged in ((0.125, 1), (0.25, 2), (0.5, 4)):
        model = Yolact(override(config, [f"model.proto_scale={scale}"])).eval()
        model.load_state_dict(plain.state_dict())  # prototypes of another size have the same weights
        with torch.inference_mode():
            output, semantic = model.forward_train(x)
        assert output.loc.shape == (2, *model.priors.shape)
        cells = [-(-side // 8) for side in size]
        assert semantic.shape == (2, 3, *cells)
        assert output.prototypes.shape == (2, *(enlarged * side for side in cells), 16)
        assert output.prototypes.shape[1:3] == prototype_size(size, scale)


def test_a_new_deformable_layer_is_half_a_convolution() -> None:
    layer = DeformConv(4, 6, stride=2)
    x = torch.randn(2, 4, 9, 11)
    torch.testing.assert_close(layer(x), 0.5 * F.conv2d(x, layer.weight, stride=2, padding=1))


def test_deformable_layer_samples_where_its_offsets_point() -> None:
    layer = DeformConv(1, 1)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0, 0, 1, 1] = 1  # the centre tap alone
        layer.conv_offset_mask.bias[8:10] = torch.tensor([1.0, 2.0])  # its y and x
        layer.conv_offset_mask.bias[18:] = 100.0  # modulation 1
    x = torch.arange(30.0).reshape(1, 1, 5, 6)
    torch.testing.assert_close(layer(x)[0, 0, :4, :4], x[0, 0, 1:, 2:])


@pytest.mark.parametrize(("interval", "expected"), [(1, 13), (3, 5)])
def test_which_blocks_are_deformable(interval: int, expected: int) -> None:
    backbone = build_backbone(BackboneConfig("resnet50", (0, 4, 6, 3), interval))
    assert sum(isinstance(module, DeformConv) for module in backbone.modules()) == expected


def test_deformable_blocks_need_a_resnet() -> None:
    with pytest.raises(UsageError, match="darknet53 allows only zeros"):
        build_backbone(BackboneConfig("darknet53", (0, 1, 0, 0)))


def test_frozen_batch_norm_does_not_change() -> None:
    model = Yolact(get_config("yolact_tiny")).train()
    model.freeze_batch_norm()
    before = {key: value.clone() for key, value in model.state_dict().items() if "running" in key}
    model.forward_train(torch.randn(2, 3, 128, 128))[0].loc.sum().backward()
    after = model.state_dict()
    assert before
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert model.backbone.get_submodule("stem.1").weight.grad is None


def test_deformable_convolution_under_autocast() -> None:
    torch.manual_seed(0)
    layer = DeformConv(4, 6)
    torch.nn.init.normal_(layer.conv_offset_mask.weight, std=0.1)
    x = torch.randn(1, 4, 9, 9)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x.bfloat16())
    torch.testing.assert_close(found, layer(x), rtol=0.05, atol=0.05)
    found.sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.isfinite().all()
