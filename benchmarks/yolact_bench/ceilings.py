"""What this machine can do at most, as `python -m yolact_bench.ceilings`; see `roofline.ceilings`."""

from yolact_bench.roofline.ceilings import main

if __name__ == "__main__":
    raise SystemExit(main())
