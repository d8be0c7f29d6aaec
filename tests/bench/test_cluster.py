"""The options of `yolact-bench ray`."""

import pytest

from yolact_bench.cli import main

pytest.importorskip("ray", reason="needs ray[data]: pip install 'yolact[ray]'")
pytest.importorskip("psutil")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--workers", "2", "0"), "--workers is 0"),
        (("--latency-ms", "-1"), "--latency-ms is -1"),
        (("--latency-ms", "nan"), "--latency-ms is nan"),
        (("--block", "0"), "--block is 0"),
        (("--engine", "m.onnx"), "both --engine E and --images DIR"),
    ],
)
def test_wrong_options_end_before_any_work(capsys, arguments, reason):
    assert main(["ray", *arguments]) == 2
    printed = capsys.readouterr().err
    assert reason in printed and printed.count("\n") == 1
