"""Architectures: what is possible, what is refused, and the JSON they travel in."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from quadranas.errors import QuadranasError
from quadranas.space.architecture import Architecture, Block, check_resolution, load_architecture
from quadranas.space.cost import count_params
from quadranas.space.reference import reference_architecture
from quadranas.space.search_space import SearchSpace
from quadranas.space.space_file import load_space
from tests.operations import spec

TOY = load_space("toy")


def random_network(draw: st.DrawFn, space: SearchSpace) -> Architecture:
    choices: dict[str, tuple[int, ...] | None] = {}
    for block in space.blocks:
        kept = not block.optional or draw(st.booleans())
        picks = [draw(st.integers(0, len(slot.candidates) - 1)) for slot in block.slots]
        choices[block.name] = tuple(picks) if kept else None
    return space.architecture(choices, name=draw(st.text(min_size=1, max_size=9)))


@st.composite
def networks(draw: st.DrawFn) -> Architecture:
    space = load_space(draw(st.sampled_from(["toy", "mbconv-mobile", "quadranet-mobile"])))
    network = random_network(draw, space)
    values = st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False)
    finite = values.filter(lambda value: value not in (float("inf"), float("-inf")))
    return network.model_copy(
        update={
            "provenance": draw(st.dictionaries(st.text(), finite, max_size=4)),
            "layer_scale": draw(st.floats(-1, 1)),
        }
    )


# ---------------------------------------------------------------- Architecture


def test_a_head_last_and_only_there() -> None:
    first = spec("conv_bn", in_channels=3)
    head = spec("norm_head", out_channels=10)
    blocks = (Block(name="first", ops=(first,)), Block(name="head", ops=(head,)))
    network = Architecture(name="n", resolution=16, num_classes=10, blocks=blocks)
    assert [op.kind for op in network.ops()] == ["conv_bn", "norm_head"]
    assert head.out_resolution == 1

    second = Block(name="second", ops=(spec("norm_head", in_channels=10, resolution=1),))
    for wrong in ((*blocks, second), blocks[:1]):
        with pytest.raises(ValidationError, match="exactly one head is needed, as the last op"):
            Architecture(name="n", resolution=16, num_classes=8, blocks=wrong)


def edit(path: list[str | int], value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(content: dict[str, Any]) -> None:
        place: Any = content
        for key in path[:-1]:
            place = place[key]
        if value is ...:
            del place[path[-1]]
        else:
            place[path[-1]] = value

    return apply


def smallest() -> Architecture:
    return TOY.extreme(count_params, largest=False)


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        (["blocks", 1, "ops", 0, "kernel_size"], 4, "impossible quadratic_depthwise: kernel_size"),
        (["blocks", 1, "ops", 0, "kind"], "quadratic_depthwize", "did you mean 'quadratic_depthw"),
        (["blocks", 1, "ops", 0, "kernel"], 3, "blocks.1.ops.0.kernel: unknown key (got 3)"),
        (
            ["blocks", 0, "ops", 0, "in_channels"],
            1,
            "takes 1 channels at 32 pixels, but rece",
        ),
        (
            ["blocks", 0, "ops", 0, "out_channels"],
            9,
            "takes 8 channels at 8 pixels, but recei",
        ),
        (["blocks", 0, "ops", 0, "out_channels"], 10**9, "or equal to 65536 (got 1000000000)"),
        (["blocks", 0, "ops"], [], "blocks.0.ops: List should have at least 1 item"),
        (["blocks", 0, "ops"], "patch_stem", "blocks.0.ops: Input should be a valid list"),
        (["blocks", 0, "name"], "a.b", "blocks.0.name: String should match pattern"),
        (["blocks", 0, "name"], "stage1_block1", "two blocks share a name"),
        (["blocks", -1], ..., "exactly one head is needed, as the last operation"),
        (["blocks"], [], "blocks: List should have at least 1 item"),
        (["blocks"], ..., "not an architecture file: key 'blocks' is missing"),
        (["num_classes"], 11, "the head has 10 outputs for 11 classes"),
        (["num_classes"], "ten", "num_classes: Input should be a valid integer"),
        (["resolution"], 64, "takes 3 channels at 32 pixels, but receives 3 at 64"),
        (["resolution"], ..., "resolution: required key is missing"),
        (["name"], None, "name: Input should be a valid string (got None)"),
        (["nmae"], "x", "nmae: unknown key (got 'x'); accepted: blocks, changes, format_version"),
        (["layer_scale"], float("nan"), "layer_scale: Input should be a finite number (got nan)"),
        (["provenance"], {"a": [1]}, "provenance.a: Input should be a valid string or"),
        (["format_version"], 2, "format_version 2 is newer than this quadranas reads (up to 1)"),
        (["format_version"], 0, "format_version: Input should be greater than or equal to 1"),
        (["format_version"], "2", "format_version: Input should be a valid integer (got '2')"),
    ],
)
def test_impossible_files_name_file_key_and_fault(
    tmp_path: Path, path: list[str | int], value: Any, fault: str
) -> None:
    file = tmp_path / "architecture.json"
    smallest().save(file)
    content = json.loads(file.read_text(encoding="utf-8"))
    edit(path, value)(content)
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(QuadranasError) as caught:
        load_architecture(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert fault in str(caught.value)


def test_a_newer_version_says_how_to_read_it(tmp_path: Path) -> None:
    file = tmp_path / "architecture.json"
    file.write_text('{"format_version": 7, "something": "else"}', encoding="utf-8")
    with pytest.raises(QuadranasError, match="format_version 7 is newer") as caught:
        load_architecture(file)
    assert caught.value.hint == "Upgrade with: pip install --upgrade quadranas"


def test_two_kinds_in_one_block_are_refused() -> None:
    op = spec("conv_bn")
    with pytest.raises(ValidationError, match="'b' contains the same kind of operation twice"):
        Block(name="b", ops=(op, op))


def test_every_truncation_of_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "architecture.json"
    smallest().save(file)
    text = file.read_text(encoding="utf-8").rstrip()
    for end in range(0, len(text), 37):
        file.write_text(text[:end], encoding="utf-8")
        with pytest.raises(QuadranasError, match=r"architecture.json: not valid JSON: "):
            load_architecture(file)


@settings(max_examples=50)
@given(network=networks())
def test_json_round_trip(tmp_path_factory: pytest.TempPathFactory, network: Architecture) -> None:
    file = tmp_path_factory.mktemp("json") / "a.json"
    network.save(file)
    again = load_architecture(file)
    assert again == network
    assert again.model_dump_json() == network.model_dump_json()


def test_a_file_states_only_what_differs_from_the_defaults(tmp_path: Path) -> None:
    reference_architecture("quadranet25_t").save(tmp_path / "a.json")
    content = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert content["blocks"][1]["ops"][1] == {
        "kind": "feed_forward",
        "in_channels": 64,
        "out_channels": 64,
        "resolution": 56,
        "expand_ratio": 4,
    }


ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.just([])
)


@given(data=st.data())
def test_no_edit_of_a_file_raises_anything_else(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    file = tmp_path_factory.mktemp("edits") / "a.json"
    content = smallest().model_dump(mode="json")
    place: Any = content
    key: Any = data.draw(st.sampled_from(sorted(place)))
    while isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
        place = place[key]
        keys = sorted(place) if isinstance(place, dict) else range(len(place))
        key = data.draw(st.sampled_from(keys))
    place[key] = data.draw(ANYTHING)
    file.write_text(json.dumps(content), encoding="utf-8")
    try:
        network = load_architecture(file)
    except QuadranasError as error:
        message = str(error)
    else:
        network.save(file)
        message = f"{file}: " if load_architecture(file) == network else "lost in saving"
    assert message.startswith(f"{file}: ")


# ---------------------------------------------------------------- adapted


@given(network=networks(), multiple=st.integers(1, 20), num_classes=st.integers(1, 2000))
def test_adapting_changes_pixels_and_classes_only(
    network: Architecture, multiple: int, num_classes: int
) -> None:
    total = 1
    for op in network.ops():
        total *= op.stride
    resolution = multiple * total
    adapted = network.adapted(resolution=resolution, num_classes=num_classes)
    assert (adapted.resolution, adapted.num_classes) == (resolution, num_classes)
    assert (adapted.name, adapted.provenance) == (network.name, network.provenance)
    for before, after in zip(network.ops(), adapted.ops(), strict=True):
        out = num_classes if before.is_head else before.out_channels
        changes = {"resolution": after.resolution, "out_channels": out}
        assert after == before.model_copy(update=changes)
        assert after.resolution * network.resolution == before.resolution * resolution
    back = adapted.adapted(resolution=network.resolution, num_classes=network.num_classes)
    assert back == network
    assert network.adapted() == network


def test_classes_change_at_any_resolution() -> None:
    stem = spec("conv_bn", in_channels=3, resolution=225, stride=2)
    head = spec("linear_head", resolution=113)
    blocks = (Block(name="stem", ops=(stem,)), Block(name="head", ops=(head,)))
    network = Architecture(name="odd", resolution=225, num_classes=8, blocks=blocks)
    assert [op.resolution for op in network.adapted(num_classes=3).ops()] == [225, 113]
    with pytest.raises(QuadranasError, match="Use 222 or 224"):
        network.adapted(resolution=223)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution": 0}, "resolution 0 does not fit toy: it must be a multiple of 8, at most"),
        ({"resolution": 33}, "resolution 33 does not fit toy.*\nUse 32 or 40."),
        ({"num_classes": 0}, "0 classes do not fit toy: the number must be 1 to 65536"),
        ({"num_classes": 65537}, "65537 classes do not fit toy: the number must be 1 to 65536"),
    ],
)
def test_adapting_to_the_impossible(changes: dict[str, int], message: str) -> None:
    with pytest.raises(QuadranasError, match=message):
        smallest().adapted(**changes)


@given(resolution=st.integers(-10, 20_000), factors=st.lists(st.sampled_from([1, 2, 4, 7])))
def test_suggested_resolutions_fit_and_are_the_nearest(
    resolution: int, factors: list[int]
) -> None:
    ops = tuple(spec("conv_bn", stride=stride) for stride in factors[:4])
    total = 1
    for op in ops:
        total *= op.stride
    fits = range(total, 8193, total)
    if resolution in fits:
        check_resolution(resolution, ops, "it")
        return
    with pytest.raises(QuadranasError, match=f"resolution {resolution} does not fit it") as caught:
        check_resolution(resolution, ops, "it")
    hint = caught.value.hint
    suggested = [int(size) for size in hint.removeprefix("Use ").rstrip(".").split(" or ")]
    assert set(suggested) <= set(fits)
    assert min(fits, key=lambda size: abs(size - resolution)) in suggested
