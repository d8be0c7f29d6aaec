import numpy as np
import pytest
import torch
from fake_onnx import pack_mask_iou_net

from yolact_runtime import YolactError
from yolact_runtime.rescore import MaskIouNet


def test_it_computes_what_torch_computes():
    torch.manual_seed(0)
    layers, channels = [], 1
    for width in (8, 16, 32):
        layers += [torch.nn.Conv2d(channels, width, 3, stride=2), torch.nn.ReLU()]
        channels = width
    net = torch.nn.Sequential(*layers, torch.nn.Conv2d(channels, 5, 1), torch.nn.ReLU())
    masks, classes = torch.rand(7, 138, 30), torch.tensor([0, 1, 2, 3, 4, 4, 0])
    with torch.no_grad():
        expected = net(masks[:, None]).amax((2, 3)).gather(1, classes[:, None])[:, 0].numpy()
    text = pack_mask_iou_net([(c.weight.detach().numpy(), c.bias.detach().numpy()) for c in net[::2]])
    ours = MaskIouNet.from_text(text, "model.onnx", 5)
    np.testing.assert_allclose(ours(masks.numpy(), classes.numpy()), expected, atol=1e-5)
    assert ours(masks.numpy()[:0], classes.numpy()[:0]).shape == (0,)


@pytest.mark.parametrize("text", ["", "%%%", "aGVsbG8=", pack_mask_iou_net([(np.zeros(3), np.zeros(3))])])
def test_weights_that_cannot_be_read(text):
    with pytest.raises(YolactError, match=r"model\.onnx.*mask_iou_net"):
        MaskIouNet.from_text(text, "model.onnx", 3)
