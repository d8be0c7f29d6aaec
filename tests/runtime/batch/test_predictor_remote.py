"""`BatchPredictor` with an engine on a server."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from fake_engine import BlobEngine
from fake_triton import FakeTriton

from yolact_runtime.batch import BatchPredictor
from yolact_runtime.errors import EngineUnavailableError


def test_rows_are_those_of_the_engine_and_a_lost_server_is_no_row() -> None:
    image = cv2.resize(np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8), (70, 50))
    rows = [{"image": image}, {"bytes": b"damaged"}, {"image": image[:30]}]
    with FakeTriton(BlobEngine()) as server:
        address = server.start_http().address()
        predictor = BatchPredictor(address, threads=2, retries=0)  # threads are for reading and encoding
        found = predictor(rows)
        assert predictor.engine.streams == 8
        expected = [server.engine.predict([row["image"]])[0] for row in (rows[0], rows[2])]
        assert [found[0]["rles"], found[2]["rles"]] == [one.rles for one in expected]
        assert found[1]["error"] and not found[0]["error"]
        server.stop()
        with pytest.raises(EngineUnavailableError):
            predictor(rows)
        predictor.close()
