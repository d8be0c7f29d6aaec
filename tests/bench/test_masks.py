from yolact_bench import cli


def test_both_ways_make_the_same_masks(capsys, monkeypatch):
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # restored afterwards
    assert (
        cli.main(["masks", "--detections", "5", "--size", "60x80", "--repeats", "1", "--threads", "1"]) == 0
    )
    out = capsys.readouterr().out
    assert "5 masks at 80 x 60" in out and "ratio" in out
