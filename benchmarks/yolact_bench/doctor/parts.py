"""Stages for what surrounds a network: detection and masks in NumPy, output files, videos."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from yolact_bench.doctor import network
from yolact_bench.doctor.engines import image_folder
from yolact_bench.doctor.stage import FAILED, OK, Context, Outcome, Stage

if TYPE_CHECKING:
    from yolact_runtime import Engine

_BASE = ("numpy", "cv2", "pycocotools")
_FRAMES = 12


def part_stages() -> list[Stage]:
    """Stages that need no inference library."""
    return [
        Stage("numpy", "parts", _numpy, _BASE, "detection and masks in NumPy against stored results"),
        Stage("masks", "parts", _masks, _BASE, "masks inside their boxes against masks of whole images"),
        Stage("outputs", "parts", _outputs, _BASE, "the pipeline into COCO JSON, read by pycocotools"),
        Stage("video", "parts", _video, (*_BASE, "av"), "a video written and read again"),
    ]


def _numpy(context: Context) -> Outcome:
    """Compare detections and masks from synthetic heads with the stored ones."""
    from yolact_bench.doctor.results import EXACT, compare

    result = heads_engine(context).predict([network.sample_images()[1]], 0.0, 100)[0]
    return compare(_stored(), result.to_coco(0), EXACT)


def _masks(context: Context) -> Outcome:
    """Compare the two ways to compute masks."""
    import numpy as np
    from pycocotools import mask as coco_mask

    from yolact_bench.masks import mask_case, whole_masks
    from yolact_runtime.masks import box_masks, encode

    size = 480, 640
    case = mask_case(20)
    whole = coco_mask.decode(whole_masks(*case, *size))
    boxes = coco_mask.decode(encode(box_masks(*case, *size), *size))
    share = float((whole != boxes).sum() / max(1, np.sum(whole)))
    figures = {"masks": 20, "share of pixels that differ": share}
    if share < 1e-4 and whole.any():
        return Outcome(OK, figures)
    return Outcome(
        FAILED, figures, "masks inside boxes differ from those of whole images", "report it as a bug"
    )


def _outputs(context: Context) -> Outcome:
    """Run the pipeline into files, and read them with pycocotools."""
    from pycocotools.coco import COCO

    from yolact_bench.doctor.results import EXACT, compare
    from yolact_runtime.pipeline import PipelineSettings, run_pipeline
    from yolact_runtime.sinks.coco import CocoSink
    from yolact_runtime.sinks.image_ids import ImageNumbers
    from yolact_runtime.sinks.per_image.overlays import OverlaySink
    from yolact_runtime.sources.images import ImageSource

    engine = heads_engine(context)
    meta, folder = engine.metadata, context.folder / "outputs"
    sink = CocoSink(folder / "masks.json", meta.category_ids, meta.class_names, ImageNumbers())
    overlays = OverlaySink(folder / "overlays")
    # Of the size that the stored results are of.
    picture = image_folder(context) / "1.png"
    settings = PipelineSettings(score_threshold=0.0, top_k=100)
    stats = run_pipeline(ImageSource([picture, picture]), engine, [sink, overlays], settings)
    truth = COCO(str(sink.paths[2]))
    found = truth.loadRes(str(sink.paths[0]))
    entries = [{**one, "image_id": one["image_id"] - 1} for one in found.dataset["annotations"]]
    expected = [{**one, "image_id": number} for number in (0, 1) for one in _stored()]
    done = compare(expected, entries, EXACT)
    drawn = len(list((folder / "overlays").iterdir()))
    figures = {"images": stats.done, "overlays": drawn, **done.figures}
    if stats.done != 2 or not drawn:
        return Outcome(FAILED, figures, f"{stats.done} of 2 images were written", "report it as a bug")
    return Outcome(done.state, figures, done.reason, done.remedy)


def _video(context: Context) -> Outcome:
    """Write a video, read it, and compare number, time and brightness of the frames."""
    import time

    import numpy as np

    from yolact_runtime.pipeline import PipelineSettings, run_pipeline
    from yolact_runtime.sinks.video import VideoSink
    from yolact_runtime.sources.video import VideoSource

    path = _write_video(context)
    start = time.perf_counter()
    frames = [(frame.time, frame.read()) for frame in VideoSource(path)]
    seconds = time.perf_counter() - start
    figures: dict[str, Any] = {"frames": len(frames), "decode ms a frame": round(1000 * seconds / _FRAMES, 2)}
    bright = [float(np.mean(image)) for _, image in frames]
    late = max((abs((time_ or 0) - number / 10) for number, (time_, _) in enumerate(frames)), default=1.0)
    if len(frames) != _FRAMES or late > 0.01:
        return Outcome(
            FAILED, figures, f"{len(frames)} of {_FRAMES} frames, {late:.2f} s late", "report a bug"
        )
    wrong = max(abs(value - _shade(number)) for number, value in enumerate(bright))
    figures["largest difference of brightness"] = round(wrong, 2)
    if wrong > 4:
        return Outcome(FAILED, figures, "the pictures of the video are not those written", "report a bug")
    sink = VideoSink(context.folder / "overlays")
    stats = run_pipeline(
        VideoSource(path), heads_engine(context), [sink], PipelineSettings(score_threshold=0.9)
    )
    figures["encoder"] = "works" if sink.outputs else "wrote nothing"
    state = OK if stats.done == _FRAMES and sink.outputs else FAILED
    return Outcome(state, figures, "" if state == OK else "the video with overlays was not written", "")


def _shade(number: int) -> float:
    return 40.0 + 12 * number


def _write_video(context: Context) -> Any:
    """A video of grey frames at 10 frames a second."""
    import av
    import numpy as np

    path = context.folder / "video.mkv"
    with av.open(str(path), "w") as output:
        stream: Any = output.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "bgr0"
        for number in range(_FRAMES):
            image = np.full((96, 128, 3), _shade(number), np.uint8)
            output.mux(
                stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24").reformat(format="bgr0"))
            )
        output.mux(stream.encode(None))
    return path


@cache
def _engine_class() -> type[Engine]:
    """The engine of synthetic heads; its class needs NumPy and OpenCV."""
    import numpy as np

    from yolact_runtime import Detections, Engine, Metadata
    from yolact_runtime.engines.outputs import GraphOutputs

    class HeadsEngine(Engine):
        """Finds in every image what the runtime's NumPy detection finds in the synthetic heads."""

        def __init__(self, metadata: Metadata) -> None:
            self.metadata = metadata
            self._outputs = GraphOutputs(metadata, "synthetic heads")
            self._heads = network.sample_heads()

        def detect(self, batch: np.ndarray, classes: frozenset[int] | None = None) -> Detections:
            heads = [np.repeat(self._heads[name], len(batch), axis=0) for name in self._outputs.names]
            return self._outputs.detections(heads, classes)

    return HeadsEngine


def heads_engine(context: Context) -> Engine:
    """An engine that needs no library: the runtime's detection, on synthetic heads."""
    from yolact_runtime import Metadata
    from yolact_runtime.engines.onnx_file import check_onnx

    path = network.write_onnx_file(context.folder / "heads.onnx", "runtime")
    factory: Any = _engine_class()
    engine: Engine = factory(Metadata.from_props(check_onnx(path).properties, path))
    return engine


def _stored() -> list[dict[str, Any]]:
    """What PyTorch found in the synthetic heads, at the size of the second sample image."""
    file = resources.files("yolact_bench.doctor").joinpath("data/heads.json")
    found: list[dict[str, Any]] = json.loads(file.read_text("utf-8"))
    return found
