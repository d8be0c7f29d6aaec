"""All commands and subcommands."""

COMMANDS = {
    "yolact-demo": "yolact.cli.demo:main",
    "yolact-train": "yolact.cli.train:main",
    "yolact-eval": "yolact.cli.evaluate:main",
    "yolact-data": "yolact.cli.data:main",
    "yolact-export": "yolact_export.cli:main",
    "yolact-infer": "yolact_runtime.cli:main",
    "yolact-bench": "yolact_bench.cli:main",
    "yolact-doctor": "yolact_bench.doctor.cli:main",
}
SUBCOMMANDS = {
    "yolact-infer": ["merge"],
    "yolact-data": ["check", "show", "shapes", "convert"],
    "yolact-export": ["inspect"],
    "yolact-bench": [
        "compare",
        "peers",
        "roofline",
        "kernels",
        "training",
        "data",
        "masks",
        "tracks",
        "load",
        "tables",
    ],
}
COMMAND_LINES = [
    (name, *words) for name in COMMANDS for words in ((), *((one,) for one in SUBCOMMANDS.get(name, ())))
]
