"""A 20,000 x 20,000 image in tiles, under a limit on memory."""

import json
import subprocess
import sys

import pytest

SCRIPT = r"""if True:
    import dataclasses, json, re

    import numpy as np

    from yolact_runtime import Detections, Engine, Metadata, tiled

    status = lambda key: int(re.search(key + r":\s+(\d+)", open("/proc/self/status").read())[1]) * 1024

    class Fake(Engine):
        "Finds `count` discs at random places of every tile."

        metadata = Metadata(
            config="fake", class_names=("a",), category_ids=(1,), input_size=32,
            mean=(0.0,) * 3, std=(1.0,) * 3, max_batch=8, max_detections=3,
        )
        count, calls = 3, 0

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

    engine = tiled(Fake(), 640, 0.2)
    engine.predict([np.zeros((700, 700, 3), np.uint8)])  # loads everything
    image = np.zeros((20_000, 20_000, 3), np.uint8)
    image[:] = 7
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS")
    (result,) = engine.predict([image], 0.05, 100_000)
    found = status("VmHWM") - before
    text = json.dumps(result.to_coco(1))
    written = status("VmHWM") - before
    names = ("relative_boxes", "scores", "mask_scores", "classes", "coefficients", "contours")
    best = dataclasses.replace(result, **{name: getattr(result, name)[:15] for name in names})
    canvas = best.draw(image)
    drawn = status("VmHWM") - before
    print(json.dumps([len(result), image.nbytes, found, written, drawn, bool((canvas[::7, ::7] != 7).any())]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_memory_is_that_of_the_image_and_a_little():
    """Tiles and the whole image, JSON of thousands of instances, and an overlay, which is a second image."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    instances, image, found, written, drawn, changed = json.loads(done.stdout)
    assert instances > 2_000 and changed
    assert found <= written < 150e6
    assert drawn < image + 200e6
