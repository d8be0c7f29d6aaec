"""A run on a Ray cluster of two nodes: what one process finds, also with damaged images and a lost node."""

import collections
import os
import shutil
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from fake_onnx import NATIVE, native_arrays, write_onnx

from yolact_runtime import cli, load_engine
from yolact_runtime.batch.rows import row_of
from yolact_runtime.errors import UsageError, YolactError

pytest.importorskip("ray", reason="needs ray[data]: pip install 'yolact[ray]'")
parquet = pytest.importorskip("pyarrow.parquet")
on_ray = pytest.importorskip("yolact_runtime.batch.on_ray")

pytestmark = pytest.mark.slow
BUCKET = "images"


@pytest.fixture(scope="module")
def storage():
    """A local server that speaks S3, for all processes of the cluster; None where moto is not installed."""
    try:
        from moto.server import ThreadedMotoServer
    except ImportError:
        yield None
        return
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    names = {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**names, "AWS_DEFAULT_REGION": "us-east-1"}.items():
            patch.setenv(name, value)
        yield address
    server.stop()


@pytest.fixture(scope="module")
def cluster(storage):
    """Two nodes with a CPU each."""
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        cluster.add_node(num_cpus=1)
        ray.init(cluster.address, log_to_driver=False, logging_level="error")
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    return write_onnx(tmp_path_factory.mktemp("engine") / "m.onnx", native_arrays(), NATIVE)


def infer(engine, folder, *sources, part_rows=16, **how):
    """Run on the cluster; returns the exit code."""
    arguments = ["--ray", "--engine", engine, "--output-parquet", folder, *how.pop("options", ()), *sources]
    parser = cli.build_parser()
    args = parser.parse_args(list(map(str, arguments)))
    cli.check_options(args)
    return on_ray.infer_on_ray(args, part_rows=part_rows, **how)


def rows_in(folder, filesystem=None):
    """The rows of all parts, which must have each path once."""
    rows = parquet.read_table(str(folder), filesystem=filesystem).to_pylist()
    assert max(collections.Counter(row["path"] for row in rows).values()) == 1
    return {Path(row["path"]).name: row for row in rows}


def test_same_as_one_process_with_damaged_images(cluster, engine, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(100):
        size = 20 + number % 17, 30 + number % 13, 3
        cv2.imwrite(str(images / f"{number:03}.png"), np.full(size, 255 - number, np.uint8))
    (images / "042.png").write_bytes(b"broken")
    out = tmp_path / "out"
    assert infer(engine, out, images) == 1
    printed = capsys.readouterr()
    assert printed.out.startswith("99 images, ") and "1 failure" in printed.out
    assert printed.err.count("\n") == 0
    rows = rows_in(out)
    assert [name for name, row in rows.items() if row["error"]] == ["042.png"]
    with load_engine(engine, threads=1) as plain:
        for path in sorted(images.iterdir()):
            row = rows[path.name]
            if path.name == "042.png":
                assert "damaged" in row["error"] and row["boxes"] == []
                continue
            wanted = row_of(str(path), plain.predict([cv2.imread(str(path))])[0])
            for name, value in wanted.items():
                assert row[name] == (value.tolist() if isinstance(value, np.ndarray) else value)
    # The files of COCO results are the same.
    plain = [
        "--engine",
        str(engine),
        "--threads",
        "1",
        "--no-overlay",
        "--json",
        str(tmp_path / "plain/m.json"),
    ]
    assert cli.main([*plain, str(images)]) == 1
    assert cli.main(["merge", str(out), "--json", str(tmp_path / "merged/m.json")]) == 1
    for path in (tmp_path / "plain").glob("*.json"):
        assert path.read_bytes() == (tmp_path / "merged" / path.name).read_bytes()
    # Only the failed image is done again.
    shutil.copy(images / "001.png", images / "042.png")
    capsys.readouterr()
    assert infer(engine, out, images, options=["--resume"]) == 0
    assert "1 image, " in (printed := capsys.readouterr().out) and "99 done before" in printed
    repaired = rows_in(out)
    assert repaired["042.png"]["boxes"] == rows["001.png"]["boxes"] and len(repaired) == 100


def test_images_and_parts_in_object_storage(cluster, storage, engine, tmp_path, capsys):
    if storage is None:
        pytest.skip("needs moto[server], a local server that speaks S3")
    import pyarrow as pa
    from pyarrow.fs import S3FileSystem

    system = S3FileSystem(endpoint_override=storage, region="us-east-1", allow_bucket_creation=True)
    system.create_dir(BUCKET)
    image = cv2.imencode(".png", np.full((20, 30, 3), 255, np.uint8))[1].tobytes()
    for name in ("a.png", "with #1?.png", "c.png"):
        with system.open_output_stream(f"{BUCKET}/in/{name}") as stream:
            stream.write(image if name != "c.png" else b"broken")
    inside = pa.table({"path": ["inside", None], "bytes": [image, image + b" "]})
    parquet.write_table(inside, tmp_path / "t.parquet")
    parquet.write_table(pa.table({"path": [f"s3://{BUCKET}/in/missing.png"]}), tmp_path / "p.parquet")
    sources = f"s3://{BUCKET}/in/*.png", tmp_path / "t.parquet", tmp_path / "p.parquet"
    assert infer(engine, f"s3://{BUCKET}/out", *sources) == 1
    assert "4 images, 8 detections, 2 failures" in capsys.readouterr().out
    rows = rows_in(f"{BUCKET}/out", system)
    assert rows["missing.png"]["error"].endswith("no such file") and "damaged" in rows["c.png"]["error"]
    assert rows["inside"]["scores"] == rows["with #1?.png"]["scores"] == [np.float32(0.9), np.float32(0.3)]
    assert infer(engine, f"s3://{BUCKET}/out", *sources, options=["--resume"]) == 1
    assert "0 images, 0 detections, 2 failures; 4 done before" in capsys.readouterr().out
    assert len(rows_in(f"{BUCKET}/out", system)) == 6


def test_errors_of_workers_are_one_line(cluster, engine, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(UsageError, match="no class 'horse'") as caught:
        infer(engine, tmp_path / "out", tmp_path / "a.png", options=["--classes", "horse", "--"])
    assert "\n" not in str(caught.value)
    (tmp_path / "bad.onnx").write_bytes(b"no engine")
    with pytest.raises(YolactError) as broken:
        infer(tmp_path / "bad.onnx", tmp_path / "out", tmp_path / "a.png")
    assert "bad.onnx" in str(broken.value) and "\n" not in str(broken.value)
    assert not (tmp_path / "out").exists()


def test_a_lost_node_loses_and_doubles_nothing(cluster, engine, tmp_path, capsys):
    """Last, as the cluster has one node afterwards."""
    images = tmp_path / "images"
    images.mkdir()
    cv2.imwrite(str(images / "000.jpg"), np.full((2000, 2000, 3), 255, np.uint8))
    for number in range(1, 80):
        os.link(images / "000.jpg", images / f"{number:03}.jpg")
    out, codes = tmp_path / "out", []
    run = threading.Thread(target=lambda: codes.append(infer(engine, out, images, part_rows=8, block_rows=4)))
    run.start()
    while run.is_alive() and not list(out.glob("*.parquet")):
        time.sleep(0.02)
    written = len(list(out.glob("*.parquet")))
    cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
    run.join()
    assert codes == [0] and 0 < written < 10
    rows = rows_in(out)
    assert len(rows) == 80 and all(len(row["boxes"]) == 2 for row in rows.values())
    assert "80 images, 160 detections, 0 failures" in capsys.readouterr().out
