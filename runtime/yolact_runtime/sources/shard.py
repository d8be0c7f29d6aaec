"""`--shard 3/16`: every sixteenth image of a list, the same ones on every machine."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from yolact_runtime.errors import UsageError, without_secrets
from yolact_runtime.frames import Frame, Source
from yolact_runtime.sources.images import ImageSource
from yolact_runtime.sources.listing import ListSource
from yolact_runtime.sources.open import BrokenSource
from yolact_runtime.sources.several import leaves, name_of
from yolact_runtime.untrusted import limit

_DIGITS = 16  # of digests


@dataclass(frozen=True)
class Shard:
    """What the outputs of a shard say about it.

    Attributes:
        number: Of the shard, from 1.
        count: Number of shards.
        images: Number of images of this shard.
        listed: Number of images of all shards.
        names: Digest of the names of all images, in order.
        run: The mark of the engine and the options, as in JSON Lines.
        ids: "counted", or the digest of the annotation file that the image ids are from.
    """

    number: int
    count: int
    images: int
    listed: int
    names: str
    run: str
    ids: str

    def __str__(self) -> str:
        return f"shard {self.number} of {self.count}"

    def to_json(self) -> dict[str, Any]:
        """As it is written."""
        return {
            "number": self.number,
            "of": self.count,
            "images": self.images,
            "listed": self.listed,
            "list": self.names,
            "run": self.run,
            "ids": self.ids,
        }

    @classmethod
    def from_json(cls, value: Any) -> Shard | None:
        """The shard that a file says it is of; None if that is not what `to_json` gives."""
        keys = "number", "of", "images", "listed", "list", "run", "ids"
        if not isinstance(value, dict) or set(value) != set(keys):
            return None
        numbers, texts = [value[key] for key in keys[:4]], [value[key] for key in keys[4:]]
        if any(type(one) is not int for one in numbers) or any(type(one) is not str for one in texts):
            return None
        shard = cls(*numbers, *texts)
        right = 1 <= shard.number <= shard.count <= limit("shards") and 0 <= shard.listed < 1 << 53
        right = right and shard.images == shard.share()
        right = right and all(re.fullmatch("[0-9a-f]{8,64}|counted", text) for text in texts)
        return shard if right else None

    def share(self) -> int:
        """How many images of the list the shard has."""
        return len(range(self.number - 1, self.listed, self.count))

    def has(self, index: int) -> bool:
        """Whether the image at `index` of the list belongs to the shard."""
        return 0 <= index < self.listed and index % self.count == self.number - 1


class ShardSource(Source):
    """Image number, number + count, ... of a list of images, which keep their positions and so their ids.

    A list on standard input is read to its end first.

    Args:
        source: All images.
        number: Of the shard, from 1.
        count: Number of shards.

    Raises:
        UsageError: it has a video or a camera.
        YolactError: a folder or the list cannot be read: another machine might see other images.
    """

    def __init__(self, source: Source, number: int, count: int) -> None:
        self.number, self.count = number, count
        self.sources = [source]
        self.listed = 0
        digest = hashlib.sha256()
        for name in _names(source):
            digest.update(os.fsencode(name) + b"\0")
            self.listed += 1
        self.names = digest.hexdigest()[:_DIGITS]
        self.total = len(range(number - 1, self.listed, count))

    def __iter__(self) -> Iterator[Frame]:
        for frame in self.sources[0]:
            if frame.index % self.count == self.number - 1:
                yield frame

    def close(self) -> None:
        self.sources[0].close()

    def shard(self, run: str, ids: str) -> Shard:
        """What outputs say about the shard; see there."""
        return Shard(self.number, self.count, self.total or 0, self.listed, self.names, run, ids)


def _names(source: Source) -> Iterable[str]:
    """The names of all images."""
    for one in leaves(source):
        if isinstance(one, BrokenSource):
            raise one.error
        if isinstance(one, ListSource):
            yield from one.read_all()
        elif isinstance(one, ImageSource):
            yield from map(str, one.paths)
        else:
            raise UsageError(
                f"--shard divides images, and {without_secrets(name_of(one))} is a video or camera; give each"
                " machine videos of its own"
            )
