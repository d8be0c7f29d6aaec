"""What is on the page of measurements: each table with its commands, as they are run from a clone."""

from __future__ import annotations

from dataclasses import dataclass

# Folders and files that the commands name, by the option that says where they are.
DEMO, COCO, WEIGHTS, ORIGINAL, SERVER = "demo", "coco-mini", "weights", "original", "server"
INPUTS = {
    DEMO: "results/demo",
    COCO: "coco-mini",
    WEIGHTS: "weights",
    ORIGINAL: "original",
    SERVER: "grpc://127.0.0.1:8001/shapes",
}
NEEDS = {
    DEMO: "the folder that yolact-demo has written",
    COCO: "a dataset of COCO images in COCO layout, with train2017 and val2017",
    WEIGHTS: "a folder with the checkpoint yolact_resnet50_54_800000.pth",
    ORIGINAL: "a checkout of the original, github.com/dbolya/yolact",
    SERVER: "a Triton server with the demo's network as model `shapes`",
}
GPU = "gpu"  # needed by tables that no option helps with


@dataclass(frozen=True)
class FigureTable:
    """A table of the page.

    Attributes:
        name: By which it is asked for; the page has it between two markers.
        shows: What it shows.
        commands: Run in turn in one folder; standard output of all is the table. `&` begins one that only
            prepares what the others need.
        needs: Keys of `INPUTS`, or `GPU`.
        minutes: About how long it takes on two cores.
        packages: Libraries whose versions matter.
        keep: How the titles of the tables begin that the page has, of those with a title that are printed;
            none: all.
        verbatim: Show what is printed as it is: text that is no table.
    """

    name: str
    shows: str
    commands: tuple[str, ...]
    needs: tuple[str, ...] = ()
    minutes: float = 1
    packages: tuple[str, ...] = ("numpy", "opencv-python-headless", "onnxruntime")
    keep: tuple[str, ...] = ()
    verbatim: bool = False


_TINY = "results/demo/weights/yolact_tiny_5_700.pth"
_SHAPES = "results/demo/shapes"
_VAL = f"--images {_SHAPES}/val --annotations {_SHAPES}/annotations/instances_val.json"
_VERIFY = f"--verify {_SHAPES}/val --annotations {_SHAPES}/annotations/instances_val.json"
_R50 = "weights/yolact_resnet50_54_800000.pth"
_EIGHT = "eight/yolact_resnet50_240_240.pth"
_EXPORT_TINY = f"& yolact-export --weights {_TINY} --to onnx --max-batch 8 --no-verify --output tiny.onnx"
_EXPORT_TINY_INT8 = (
    f"& yolact-export --weights {_TINY} --to onnx --max-batch 8 --precision int8 "
    f"--calibrate {_SHAPES}/train --no-verify --output tiny_int8.onnx"
)
_EXPORT_R50 = f"& yolact-export --weights {_R50} --to onnx --detect runtime --no-verify --output r50.onnx"
_EXPORT_R50_INT8 = (
    f"& yolact-export --weights {_R50} --to onnx --detect runtime --precision int8 --calibrate "
    "coco-mini/val2017 --calibration-images 8 --keep-float none --no-verify --output r50_int8.onnx"
)
_ENGINES = ("numpy", "opencv-python-headless", "onnxruntime", "openvino")
_TORCH = ("torch", "numpy", "opencv-python-headless")
_BOTH = (*_TORCH, "onnxruntime", "openvino")


def _train(run: str, settings: str, scenes: str) -> tuple[str, str]:
    """Commands that train the demo's network and export it as `run`.onnx."""
    train = f"& yolact-train --config yolact_tiny --dataset {scenes} --iterations 700 --save-folder {run}"
    return (
        f"{train} {settings}".strip(),
        f"& yolact-export --weights {run}/yolact_tiny_5_700.pth --to onnx --no-verify --output {run}.onnx",
    )


TABLES = (
    FigureTable(
        "conversion",
        "ONNX Runtime against PyTorch, R50-550, stage by stage",
        (f"yolact-export --weights {_R50} --to onnx --verify coco-mini/val2017",),
        (WEIGHTS, COCO), 4, (*_TORCH, "onnx", "onnxruntime"),
    ),
    FigureTable(
        "precision",
        "accuracy of the demo's network in reduced precision",
        (
            f"yolact-export --weights {_TINY} --to onnx --precision fp16 --max-batch 8 "
            f"--output tiny16.onnx {_VERIFY}",
            f"yolact-export --weights {_TINY} --to onnx --precision int8 --max-batch 8 "
            f"--calibrate {_SHAPES}/train --output tiny8.onnx {_VERIFY}",
        ),
        (DEMO,), 2, (*_TORCH, "onnx", "onnxruntime"), ("Detections", "COCO AP"),
    ),
    FigureTable(
        "cpu-engines",
        "engines on a CPU: accuracy and speed of the demo's network",
        (
            _EXPORT_TINY,
            _EXPORT_TINY_INT8,
            "yolact-bench --engine tiny.onnx:backend=onnxruntime,name=ort "
            "--engine tiny.onnx:backend=openvino,name=openvino "
            "--engine tiny.onnx:backend=openvino,precision=bf16,name=openvino-bf16 "
            "--engine tiny_int8.onnx:backend=onnxruntime,name=ort-int8 "
            "--engine tiny_int8.onnx:backend=openvino,name=openvino-int8 "
            f"{_VAL} --threads 1 --no-cold",
        ),
        (DEMO,), 2, _ENGINES,
    ),
    FigureTable(
        "end-to-end",
        "R50-550 against the original, from image file to COCO masks",
        (
            _EXPORT_R50,
            _EXPORT_R50_INT8,
            "yolact-bench peers --engine r50.onnx:backend=onnxruntime,name=ort "
            "--engine r50.onnx:backend=openvino,name=openvino "
            "--engine r50.onnx:backend=openvino,precision=bf16,name=openvino-bf16 "
            "--engine r50_int8.onnx:backend=onnxruntime,name=ort-int8 "
            "--engine r50_int8.onnx:backend=openvino,name=openvino-int8 "
            "--engine r50_int8.onnx:backend=openvino,precision=int8+bf16,name=openvino-int8+bf16 "
            f"--original original --weights {_R50} --images coco-mini/val2017 --threads 2 --seconds 9",
        ),
        (WEIGHTS, COCO, ORIGINAL), 5, _BOTH,
    ),
    FigureTable(
        "int8",
        "share of the convolutions in integers, and times of float32 and int8",
        (
            _EXPORT_R50,
            _EXPORT_R50_INT8,
            "yolact-bench int8 r50.onnx r50_int8.onnx",
        ),
        (WEIGHTS, COCO), 3, _ENGINES,
    ),
    FigureTable(
        "pipeline",
        "images per second of the pipeline and of a loop",
        (
            _EXPORT_TINY,
            _EXPORT_R50,
            _EXPORT_R50_INT8,
            "yolact-bench --engine r50.onnx:backend=onnxruntime "
            "--engine r50_int8.onnx:backend=openvino,precision=int8+bf16 "
            "--engine tiny.onnx:backend=onnxruntime --images coco-mini/val2017 --threads 2 --seconds 8 "
            "--pipeline --no-cold",
        ),
        (DEMO, WEIGHTS, COCO), 4, _ENGINES,
    ),
    FigureTable(
        "overhead",
        "everything but the network, stage by stage",
        (_EXPORT_R50, "yolact-bench overhead --engine r50.onnx:backend=openvino --images coco-mini/val2017"),
        (WEIGHTS, COCO), 2, _ENGINES,
    ),
    FigureTable(
        "masks",
        "100 masks of an image of 640 x 480 and of 4K, against masks of whole images",
        ("yolact-bench masks --threads 1", "yolact-bench masks --threads 1 --size 2160x3840"),
        packages=("numpy", "opencv-python-headless", "pycocotools"),
    ),
    FigureTable(
        "samples",
        "making of training samples",
        ("yolact-bench data --dataset coco-mini --torchvision --workers 1 2",),
        (COCO,), 1, (*_TORCH, "torchvision"),
    ),
    FigureTable(
        "training",
        "a training step, against the original",
        (
            "yolact-bench training --dataset coco-mini --batch-size 4 --threads 2 --seconds 40 --runs 5 "
            "--original original",
        ),
        (COCO, ORIGINAL), 6, _TORCH,
    ),
    FigureTable(
        "wide",
        "square and wide inputs for 16:9 images, each trained",
        (
            "& yolact-data shapes scenes --train 1000 --val 400 --image-size 180x320",
            *_train("square", "", "scenes"),
            *_train("fitted", "--set 'model.prior_aspect_ratios=[0.5625]'", "scenes"),
            *_train("wide", "--set 'model.input_size=[96,168]'", "scenes"),
            "yolact-bench --engine square.onnx --engine fitted.onnx --engine wide.onnx --images scenes/val "
            "--annotations scenes/annotations/instances_val.json --no-cold",
        ),
        (), 6, (*_TORCH, "onnxruntime"),
    ),
    FigureTable(
        "prototypes",
        "sizes of the prototypes, each trained",
        (
            *_train("eighth", "--set model.proto_scale=0.125", _SHAPES),
            *_train("quarter", "", _SHAPES),
            *_train("half", "--set model.proto_scale=0.5", _SHAPES),
            f"yolact-bench --engine eighth.onnx --engine quarter.onnx --engine half.onnx {_VAL} --no-cold",
        ),
        (DEMO,), 6, (*_TORCH, "onnxruntime"),
    ),
    FigureTable(
        "tiles",
        "small shapes in large images, plain and in tiles",
        (
            _EXPORT_TINY,
            "& yolact-data shapes large --train 1 --val 4 --image-size 3000x4000 --diameter 20 33 "
            "--max-instances 100 --seed 1",
            "yolact-eval --engine tiny.onnx --dataset large",
            "yolact-eval --engine tiny.onnx --dataset large --tile 96 --tile-overlap 0.4",
            "& yolact-data shapes mixed --train 1 --val 8 --image-size 1500x2000 --diameter 40 700 "
            "--max-instances 25 --seed 2",
            "yolact-eval --engine tiny.onnx --dataset mixed",
            "yolact-eval --engine tiny.onnx --dataset mixed --tile 256 --tile-overlap 0.25 --no-tile-full",
            "yolact-eval --engine tiny.onnx --dataset mixed --tile 256 --tile-overlap 0.25",
        ),
        (DEMO,), 5,
    ),
    FigureTable(
        "tracks",
        "tracks on synthetic videos of known identities",
        (_EXPORT_TINY, "yolact-bench tracks --engine tiny.onnx"),
        (DEMO,), 2, ("numpy", "opencv-python-headless", "onnxruntime", "trackers"),
    ),
    FigureTable(
        "server",
        "requests to Triton against the pipeline of this machine",
        (
            _EXPORT_TINY,
            "yolact-bench load --engine grpc://127.0.0.1:8001/shapes --local tiny.onnx:backend=onnxruntime "
            f"--images {_SHAPES}/val --requests 10000 --concurrency 1 8 32 --damaged 0.01",
        ),
        (DEMO, SERVER), 5, ("numpy", "onnxruntime", "tritonclient"),
    ),
    FigureTable(
        "ray",
        "yolact-infer --ray against the plain pipeline, and what its driver costs",
        (
            _EXPORT_TINY,
            f"yolact-bench ray --engine tiny.onnx --images {_SHAPES}/train --repeat 4 --rounds 3",
        ),
        (DEMO,), 4, ("ray", "pyarrow", "numpy", "onnxruntime"), ("Whole runs", "Workers that"),
    ),
    FigureTable(
        "ray-large",
        "the same with a network that takes most of the time",
        (
            _EXPORT_R50,
            "& yolact-data shapes few --train 200 --val 1",
            "yolact-bench ray --engine r50.onnx --images few/train --repeat 1 --rounds 1 --workers",
        ),
        (WEIGHTS,), 6, ("ray", "pyarrow", "numpy", "onnxruntime"), ("Whole runs", "Workers that"),
    ),
    FigureTable(
        "start",
        "from the command to the first image, phase by phase: first start, and with compiled networks kept",
        (
            _EXPORT_TINY,
            _EXPORT_R50,
            f"yolact-bench start --engine tiny.onnx --image {_SHAPES}/val/000001.png",
            "yolact-bench start --engine r50.onnx --backends openvino --runs 3",
        ),
        (DEMO, WEIGHTS), 4, _ENGINES,
    ),
    FigureTable(
        "demo",
        "the whole chain: data, training, export, engines, benchmark",
        ("yolact-demo --output demo --seed 0",),
        (), 2, _BOTH, verbatim=True,
    ),
    FigureTable(
        "overfit",
        "R50 at 300 overfits eight images of COCO, and what int8 loses of that",
        (
            "& yolact-train --config yolact_resnet50 --dataset coco-mini --overfit 8 --batch-size 8 "
            "--iterations 240 --lr 1.2e-4 --workers 1 --threads 2 --save-folder eight "
            "--set train.init=random --set train.optimizer=adamw "
            "--set train.schedule=cosine --set train.warmup_iterations=20 --set train.warmup_lr=1e-5 "
            "--set train.max_grad_norm=10 --set train.weight_decay=1e-4 --set model.input_size=300 "
            "--set 'model.prior_scales=[[13],[26],[52],[105],[209]]'",
            f"& yolact-export --weights {_EIGHT} --to onnx --no-verify --output eight.onnx",
            f"& yolact-export --weights {_EIGHT} --to onnx --precision int8 --calibrate coco-mini/train2017 "
            "--no-verify --output eight_int8.onnx",
            "yolact-bench --engine eight.onnx:backend=onnxruntime,name=ort "
            "--engine eight_int8.onnx:backend=onnxruntime,name=ort-int8 "
            "--engine eight.onnx:backend=openvino,name=openvino "
            "--engine eight_int8.onnx:backend=openvino,name=openvino-int8 "
            "--images coco-mini/train2017 --annotations coco-mini/annotations/instances_train2017.json "
            "--max-images 8 --threads 1 --no-cold",
            "yolact-bench int8 eight.onnx eight_int8.onnx",
        ),
        (COCO,), 45, _BOTH,
    ),
    FigureTable(
        "layers",
        "layers of the int8 network that lose time in OpenVINO, and why",
        (
            _EXPORT_R50_INT8,
            "yolact-bench roofline --onnx r50_int8.onnx --threads 1 --fresh --layers 30",
        ),
        (WEIGHTS, COCO), 3, ("openvino", "torch", "numpy"),
    ),
    FigureTable(
        "doctor-cpu",
        "each engine of this machine on a small network, against stored results",
        ("yolact-doctor --quick",),
        (), 1, verbatim=True,
    ),
    FigureTable(
        "kernels",
        "each CUDA kernel against the bytes that it moves",
        ("yolact-bench kernels",),
        (GPU,), 2, ("pycuda", "cuda-bindings"),
    ),
    FigureTable(
        "doctor",
        "engines and kernels on a GPU, as far as the libraries are installed",
        ("yolact-doctor --config yolact_resnet50",),
        (GPU,), 4, ("pycuda", "cuda-bindings", "onnxruntime", "torch"), verbatim=True,
    ),
)  # fmt: skip
