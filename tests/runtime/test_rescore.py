import base64
import io
import zipfile

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


def npz(entries: dict[str, bytes]) -> str:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(f"{name}.npy", content)
    return base64.b64encode(buffer.getvalue()).decode()


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def layers(*shapes: tuple[int, ...]) -> str:
    return pack_mask_iou_net(
        [(np.zeros(shape, np.float32), np.zeros(shape[0], np.float32)) for shape in shapes]
    )


HEADER = "{{'descr': '{}', 'fortran_order': False, 'shape': {}}}"
HOSTILE = {
    "empty": "",
    "not base64": "%%%",
    "not a zip": "aGVsbG8=",
    "of one dimension": pack_mask_iou_net([(np.zeros(3), np.zeros(3))]),
    "bomb": npz({"weight0": bytes(65 << 20), "bias0": b""}),
    "huge shape": npz({"weight0": npy(HEADER.format("<f4", "(99999999999, 9999999)")), "bias0": b""}),
    "negative shape": npz({"weight0": npy(HEADER.format("<f4", "(-1, -4)"), bytes(16)), "bias0": b""}),
    "objects": npz({"weight0": npy(HEADER.format("|O", "(1,)"), b"\x80\x04N."), "bias0": b""}),
    "nested header": npz({"weight0": npy("(" * 9000), "bias0": b""}),
    "no array": npz({"weight0": b"", "bias0": b""}),
    "other classes": layers((4, 1, 1, 1)),
    "layers that do not fit": layers((8, 1, 3, 3), (3, 7, 1, 1)),
    "wide": layers((3, 1, 9, 9)),
}


def test_masks_that_are_too_small():
    net = MaskIouNet.from_text(layers((8, 1, 3, 3), (3, 8, 3, 3)), "model.onnx", 3)
    with pytest.raises(YolactError, match="masks of 4 x 4 are too small"):
        net(np.zeros((1, 4, 4), np.float32), np.zeros(1, np.int64))


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_weights_that_cannot_be_read(text):
    with pytest.raises(YolactError, match=r"model\.onnx.*mask_iou_net"):
        MaskIouNet.from_text(text, "model.onnx", 3)
