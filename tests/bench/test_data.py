import json

import pytest

from yolact.dataset_tools.synthetic import make_shapes_dataset
from yolact_bench import cli, data


def test_prints_each_stage(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # restored afterwards
    make_shapes_dataset(tmp_path / "shapes", 4, 1)
    options = ["--dataset", str(tmp_path / "shapes"), "--config", "yolact_tiny", "--rounds", "1"]
    assert cli.main(["data", *options, "--torchvision", "--json", str(tmp_path / "f.json")]) == 0
    out = capsys.readouterr().out
    assert "4 images" in out
    figures = json.loads((tmp_path / "f.json").read_text())
    assert set(figures) == {*data.STAGES, "samples", "stages", "torchvision"}
    assert all(figure["images_per_s"] > 0 for figure in figures.values())
    # The stages are all of it: in CPU time, of which what else the machine does takes nothing.
    parts = sum(1 / figures[name]["images_per_cpu_s"] for name in data.STAGES)
    assert parts == pytest.approx(1 / figures["stages"]["images_per_cpu_s"], rel=0.3)


def test_the_rate_of_the_loader_is_that_of_its_workers(monkeypatch):
    now = 100.0

    def iterations(dataset, batches, settings, device):
        nonlocal now
        for number, batch in enumerate(batches):
            assert len(batch) == settings.batch_size == 2
            if number % settings.workers == 0:  # all make a batch in half a second
                now += 0.5 + (3.0 if number == 0 else 0.0)
            yield batch
        now += 5.0  # until the workers have ended

    monkeypatch.setattr("yolact.train.loader.iterations", iterations)
    monkeypatch.setattr(data.time, "perf_counter", lambda: now)
    for images in (1, 80):
        loader = data._time_loader(range(10), workers=4, batch_size=2, images=images)
        assert loader["images_per_s"] == pytest.approx(4 * 2 / 0.5)


def test_wrong_use_is_one_line(tmp_path, capsys):
    assert cli.main(["data", "--dataset", str(tmp_path), "--rounds", "0"]) == 2
    assert "--rounds is 0" in capsys.readouterr().err
