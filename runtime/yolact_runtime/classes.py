"""Which classes of a model are wanted: from names or ids, as users give them, to indices."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from numbers import Integral

from yolact_runtime.errors import UsageError
from yolact_runtime.typed import nearest, shown


def resolve_classes(
    wanted: Iterable[str | int] | str | int | None,
    names: Sequence[str],
    ids: Sequence[int],
    what: str = "classes",
) -> frozenset[int] | None:
    """The 0-based indices of the wanted classes; None, for all classes, stays None.

    Args:
        wanted: Names or category ids. A text is a name first; if no class has this name and it is a whole
            number, it is an id.
        names: Name of every class.
        ids: Category id of every class.
        what: Whose value it is, for errors.

    Raises:
        UsageError: nothing is wanted, or no class has such a name or id; says which names are near.
    """
    if wanted is None:
        return None
    entries = [wanted] if isinstance(wanted, (str, int, Integral)) else list(wanted)
    if not entries:
        raise UsageError(f"{what} is empty; give a name or a category id, or leave it out for all classes")
    indices: set[int] = set()
    for entry in entries:
        found = _indices(entry, names, ids)
        if not found:
            raise UsageError(f"{what}: {_unknown(entry, names, ids, alone=len(entries) == 1)}")
        indices.update(found)
    return frozenset(indices)


def _indices(entry: object, names: Sequence[str], ids: Sequence[int]) -> list[int]:
    """The classes of a name or an id: all with this name, or the one with this id."""
    if isinstance(entry, str):
        if found := [index for index, name in enumerate(names) if name == entry]:
            return found
        try:
            number = int(entry) if len(entry) < 20 else None
        except ValueError:
            return []
    else:
        number = int(entry) if isinstance(entry, Integral) and not isinstance(entry, bool) else None
    return [index for index, id_ in enumerate(ids) if id_ == number]


def _unknown(entry: object, names: Sequence[str], ids: Sequence[int], alone: bool) -> str:
    """The rest of an error about a class that the model does not have."""
    if not isinstance(entry, str):
        return f"there is no class with the id {shown(entry)}; ids: {_some(sorted(ids))}"
    text = f"there is no class {shown(entry)}"
    if entry.lstrip("-").isdecimal():
        text += f"; ids: {_some(sorted(ids))}"
    if alone and ("," in entry or os.path.isfile(entry)):  # noqa: PTH113 - raises no error
        text += (
            "; separate several by spaces (the names of a checkpoint that holds none are given by"
            " --class-names, class_names in Python)"
        )
    return f"{text}; {nearest(entry, names)}" if len(names) <= 100 else f"{text}; {_near(entry, names)}"


def _near(entry: str, names: Sequence[str]) -> str:
    """Same as `nearest`, but without listing hundreds of names."""
    text = nearest(entry, names)
    return text if text.startswith("near") else f"known: {_some(sorted(names))}"


def _some(values: Sequence[object]) -> str:
    more = f" and {len(values) - 20} more" if len(values) > 20 else ""
    return ", ".join(map(str, values[:20])) + more
