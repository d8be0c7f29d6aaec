"""Large images in overlapping tiles: `tiled(load_engine(path), 640)` is an engine that cuts and merges."""

from yolact_runtime.engines.tiles.engine import TiledEngine, tiled

__all__ = ["TiledEngine", "tiled"]
