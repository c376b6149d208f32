"""Conditions: what is compared, what is not, and in which order."""

import json
from typing import Any

import pytest

from quadranas.backends.interface import Provenance
from quadranas.latency.conditions import Conditions, Difference, in_words
from quadranas.latency.device import load_device
from quadranas.latency.table_files import find_table
from quadranas.space.space_file import load_space
from tests.measuring import board

MEASURED: dict[str, Any] = {
    "device": "board",
    "precision": "fp32",
    "threads": 1,
    "batch_size": 1,
    "backend": "onnxruntime",
    "runtime": "ONNX Runtime 1",
    "hardware": "a board",
    "settings": {"clock": "1 GHz"},
}


def test_device_and_runtime_each_know_some() -> None:
    provenance = Provenance(
        runtime="ONNX Runtime 1", hardware="a board", settings={"clock": "1 GHz"}
    )
    known = (board().conditions | provenance.conditions).known()
    assert known == MEASURED | {"target": ""}


@pytest.mark.parametrize(
    ("key", "other"),
    [
        ("device", "other"),
        ("precision", "fp16"),
        ("threads", None),
        ("batch_size", 8),
        ("backend", "openvino"),
        ("runtime", "ONNX Runtime 2"),
        ("hardware", "another board"),
        ("settings", {}),
    ],
)
def test_a_difference_is_named(key: str, other: object) -> None:
    one, two = Conditions(**MEASURED), Conditions(**MEASURED | {key: other})
    assert one.difference(two) == Difference(key, MEASURED[key], other)
    assert one.difference(one) is None


def test_all_differences_are_named_those_inside_by_their_keys() -> None:
    one = Conditions(threads=1, settings={"clock": "1 GHz", "driver": "1"}, model={"a": {"b": 1}})
    two = Conditions(threads=2, settings={"clock": "2 GHz"}, model={"a": {"b": 2}})
    assert in_words(one.differences(two)) == (
        "threads 1, not 2; settings.clock 1 GHz, not 2 GHz; settings.driver 1, not none; "
        "model.a.b 1, not 2"
    )
    assert one.differences(one) == []
    assert one.differences(Conditions(precision="fp16")) == []


def test_the_device_comes_before_what_follows_from_it() -> None:
    two = Conditions(**MEASURED | {"device": "other", "hardware": "another board"})
    difference = Conditions(**MEASURED).difference(two)
    assert difference is not None
    assert difference.key == "device"


def test_what_only_one_knows_is_not_compared() -> None:
    assert Conditions(device="board", threads=1).difference(Conditions(batch_size=8)) is None


def test_a_header_knows_its_measurement_s_conditions() -> None:
    header = find_table(load_space("toy"), "cpu").header
    known = header.conditions.known()
    assert {"hardware", "target", "settings"}.isdisjoint(known)
    assert (known["device"], known["method"], known["threads"]) == ("cpu", "analytic", 1)
    difference = header.conditions.difference(load_device("vpu").conditions)
    assert difference == Difference("device", "cpu", "vpu")


def test_an_identity_is_one_level_of_plain_values() -> None:
    identity = Conditions(**MEASURED).identity()
    assert identity == MEASURED | {"settings": '{"clock": "1 GHz"}'}
    assert json.loads(json.dumps(identity)) == identity
