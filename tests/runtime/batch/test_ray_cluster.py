"""The address of a Ray cluster, and its errors."""

import pytest

from yolact_runtime.batch.ray_cluster import address_of, error_of_ray
from yolact_runtime.errors import YolactError


@pytest.mark.parametrize(
    ("text", "variable", "address"),
    [
        ("", None, "local"),
        ("", "head:6379", "head:6379"),
        ("local", "head:6379", "local"),
        ("auto", "head:6379", "auto"),
        ("other:1", None, "other:1"),
    ],
)
def test_the_address_of_a_cluster(monkeypatch, text, variable, address):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    assert address_of(text) == address


def test_the_error_of_a_worker_is_that_of_the_run():
    outer = RuntimeError("task failed")
    outer.__cause__ = YolactError("no class 'horse'")
    assert error_of_ray(outer) is outer.__cause__
    assert str(error_of_ray(RuntimeError("first\nlast\n"))) == "Ray: RuntimeError: last"
