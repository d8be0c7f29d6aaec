"""The parameters of a request are limits that the engine takes, or an error of one line."""

from __future__ import annotations

import json

import pytest

from yolact_runtime.errors import UsageError
from yolact_runtime.metadata import Metadata
from yolact_runtime.serving.parameters import Parameters, read_parameters

META = Metadata(
    config="fake",
    class_names=("cat", "dog", "12", "a, b"),
    category_ids=(0, 7, 90, 12),
    input_size=16,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
    max_detections=100,
)


@pytest.mark.parametrize("text", ["", "{}"])
def test_defaults_are_those_of_predict(text: str) -> None:
    assert read_parameters(text, META) == (0.15, 15, None)


@pytest.mark.parametrize(
    "given, expected",
    [
        ({"score_threshold": 0, "top_k": 1}, Parameters(0.0, 1)),
        ({"score_threshold": "0.25", "top_k": "7"}, Parameters(0.25, 7)),
        ({"top_k": 10**30}, Parameters(top_k=100)),
        ({"top_k": 5.0}, Parameters(top_k=5)),
        ({"classes": "dog, cat"}, Parameters(classes=frozenset({0, 1}))),
        ({"classes": "7"}, Parameters(classes=frozenset({1}))),
        ({"classes": "12"}, Parameters(classes=frozenset({2}))),  # a name comes before an id
        ({"classes": '["a, b", 0, "dog"]'}, Parameters(classes=frozenset({0, 1, 3}))),
    ],
)
def test_numbers_and_texts(given: dict[str, object], expected: Parameters) -> None:
    assert read_parameters(json.dumps(given), META) == expected


@pytest.mark.parametrize(
    "text, words",
    [
        ('{"top_k": 0}', "top_k is 0; it must be 1 or more"),
        ('{"top_k": 1.5}', "top_k is 1.5"),
        ('{"top_k": true}', "top_k is 'True'"),
        ('{"top_k": null}', "top_k is 'None'"),
        ('{"score_threshold": 1.01}', "it must be a number in 0..1"),
        ('{"score_threshold": NaN}', "score_threshold is nan"),
        ('{"score_threshold": "-inf"}', "score_threshold is -inf"),
        ('{"score_threshold": "much"}', "score_threshold is 'much'"),
        ('{"score_threshold": [1]}', "it must be a number in 0..1"),
        ('{"score_threshold": "' + "0" * 90 + '"}', r"0000\.\.\.'; it must be a number"),
        ('{"classes": ""}', "there is no class ''"),
        ('{"classes": "[]"}', "classes is empty"),
        ('{"classes": "[true]"}', "no class with the id True"),
        ('{"classes": "[1.5]"}', "a list of names and category ids is needed"),
        ('{"classes": "[[1]]"}', "a list of names and category ids is needed"),
        ('{"classes": ["dog"]}', "a text is needed"),
        ('{"classes": "' + ",".join(map(str, range(1000))) + '"}', "1000 entries; the model has 4 classes"),
        ('{"classes": "bird"}', "no class 'bird'"),
        ('{"threshold": 1}', "unknown parameter 'threshold'; score_threshold, top_k, classes are known"),
        ("[]", "a JSON object is needed"),
        ("{", "are not JSON"),
        ('{"classes": "\\ud800"}', "half a character"),
    ],
)
def test_what_is_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as error:
        read_parameters(text, META)
    assert len(str(error.value)) < 400
