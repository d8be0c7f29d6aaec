"""The options of a run on a cluster, which are checked before any work."""

import pytest

from yolact_runtime import cli

GOOD = ("--engine", "m.onnx", "--output-parquet", "out")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((*GOOD, "--ray", "photos"), "is neither HOST:PORT"),
        ((*GOOD, "photos"), "--output-parquet needs --ray"),
        (("--engine", "m.onnx", "--gpus-per-worker", "1", "photos"), "--gpus-per-worker needs --ray"),
        (("--engine", "m.onnx", "photos", "--ray"), "--ray needs the folder"),
        ((*GOOD, "photos", "--ray", "--jsonl", "x.jsonl"), "--jsonl does not apply with --ray"),
        ((*GOOD, "photos", "--ray", "--streams", "2"), "--streams does not apply"),
        ((*GOOD, "--images", "photos", "--ray"), "--images does not apply"),
        ((*GOOD, "photos", "--ray", "--track"), "--track does not apply"),
        ((*GOOD, "photos", "--ray", "--gpus-per-worker", "1.5"), "--gpus-per-worker is 1.5"),
        ((*GOOD, "photos", "--ray", "--gpus-per-worker", "nan"), "--gpus-per-worker is nan"),
        ((*GOOD, "photos", "--ray", "--workers", "0"), "--workers is 0"),
        ((*GOOD, "photos", "--ray", "--threads", "0"), "--threads is 0"),
        ((*GOOD, "--ray"), "name the images once"),
    ],
)
def test_wrong_options(capsys, arguments, reason):
    assert cli.main(arguments) == 2
    printed = capsys.readouterr().err
    assert reason in printed and printed.count("\n") == 1


@pytest.mark.parametrize("address", ["", "auto", "local", "head:6379", "ray://10.0.0.1:10001", "[::1]:6379"])
def test_right_options(address):
    args = cli.build_parser().parse_args([*GOOD, "photos", f"--ray={address}", "--resume", "--no-json"])
    cli.check_options(args)
    assert args.ray == address
