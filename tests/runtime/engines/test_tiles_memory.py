"""A 20,000 x 20,000 image in tiles, under a limit on memory."""

import json
import subprocess
import sys

import pytest

SCRIPT = r"""if True:
    import json, re, sys

    import numpy as np

    from yolact_runtime import Detections, Engine, Metadata, tiled

    side, full = int(sys.argv[1]), sys.argv[2] == "full"
    status = lambda key: int(re.search(key + r":\s+(\d+)", open("/proc/self/status").read())[1]) * 1024

    class Fake(Engine):
        "Finds `count` discs at random places of every tile."

        metadata = Metadata(
            config="fake", class_names=("a",), category_ids=(1,), input_size=32,
            mean=(0.0,) * 3, std=(1.0,) * 3, max_batch=8, max_detections=5,
        )
        count, calls = 5, 0

        def detect(self, batch):
            n, k = len(batch), self.count
            rng = np.random.default_rng(self.calls)
            self.calls += 1
            centres, sides = rng.uniform(0, 1, (n, k, 2)), rng.uniform(0.02, 0.3, (n, k, 1))
            boxes = np.concatenate([centres - sides / 2, centres + sides / 2], axis=2).astype(np.float32)
            scores = -np.sort(-rng.random((n, k)).astype(np.float32), axis=1)
            return Detections(
                np.full(n, k, np.int32), boxes, scores, np.zeros((n, k), np.int32),
                np.ones((n, k, 1), np.float32), np.full((n, 138, 138, 1), 9, np.float32), scores,
            )

    engine = tiled(Fake(), 640, 0.2, full)
    engine.predict([np.zeros((700, 700, 3), np.uint8)])  # loads everything
    image = np.zeros((side, side, 3), np.uint8)
    image[:] = 7
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS")
    (result,) = engine.predict([image], 0.05, 100_000)
    found = status("VmHWM") - before
    text = json.dumps(result.to_coco(1))
    written = status("VmHWM") - before
    best = engine.predict([image], 0.5, 15)[0]
    canvas = best.draw(image)
    drawn = status("VmHWM") - before
    print(json.dumps({"instances": len(result), "image": image.nbytes, "found": found, "written": written,
        "drawn": drawn, "changed": bool((canvas[::7, ::7] != 7).any()), "last": int(result.regions[-1].edges[-1])}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
@pytest.mark.parametrize("full", ["full", "tiles"])
def test_memory_is_that_of_the_image_and_a_little(full):
    command = [sys.executable, "-c", SCRIPT, "20000", full]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    taken = json.loads(done.stdout)
    print(taken)
    assert taken["instances"] > 3_000
