"""Classes that users name: names, ids, and what is near a misspelt one."""

import numpy as np
import pytest

from yolact_runtime.classes import resolve_classes
from yolact_runtime.errors import UsageError

NAMES = ("cat", "traffic light", "7", "dog", "dog")
IDS = (0, 7, 90, 3, -2)


@pytest.mark.parametrize(
    ("wanted", "indices"),
    [
        (None, None),
        (["cat"], {0}),
        ("traffic light", {1}),
        (["cat", "traffic light", "cat"], {0, 1}),
        ([0, 90], {0, 2}),
        (7, {1}),
        (np.int64(7), {1}),
        (np.array([7, 3]), {1, 3}),
        (["7"], {2}),  # a name that is a number is a name first
        (["90", "0", "-2"], {2, 0, 4}),
        (["dog"], {3, 4}),  # both of this name
        (iter(["cat"]), {0}),
    ],
)
def test_names_and_ids(wanted, indices):
    assert resolve_classes(wanted, NAMES, IDS) == indices


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ([], "--classes is empty"),
        (["ca"], "--classes: there is no class 'ca'; near ones: cat"),
        (["Cat"], "near ones: cat"),
        (["cat", "zebra"], "no class 'zebra'; known: 7, cat, dog, dog, traffic light"),
        ([1], "no class with the id 1; ids: -2, 0, 3, 7, 90"),
        (["12345678901234567890123"], "no class '123"),
        (["8"], "no class '8'; ids: -2, 0, 3, 7, 90; known"),
        ([True], "no class with the id True"),
        ([1.0], "no class with the id 1.0"),
        ([None], "no class with the id None"),
        ([""], "no class ''"),
        (["cat,dog"], "separate several by spaces .*--class-names"),
    ],
)
def test_unknown_classes(wanted, message):
    with pytest.raises(UsageError, match=message):
        resolve_classes(wanted, NAMES, IDS, "--classes")


def test_a_file_of_names_is_not_taken_for_a_class(tmp_path):
    (tmp_path / "names.txt").write_text("cat")
    with pytest.raises(UsageError, match="--class-names"):
        resolve_classes([str(tmp_path / "names.txt")], NAMES, IDS)


def test_thousands_of_names_are_not_printed():
    names = [f"class {number}" for number in range(5000)]
    for wanted in (["zzz"], [9999]):
        with pytest.raises(UsageError) as caught:
            resolve_classes(wanted, names, range(5000))
        assert len(str(caught.value)) < 500 and "and 4980 more" in str(caught.value)
