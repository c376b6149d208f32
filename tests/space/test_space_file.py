"""Space files: what they say, what is refused, and how one extends another."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from quadranas.errors import QuadranasError
from quadranas.space.cost import count_params
from quadranas.space.space_file import load_space, name_after, space_files
from tests.space.documents import WriteSpace, change

# ---------------------------------------------------------------- what a file says


def test_a_space_is_what_its_file_says() -> None:
    space = load_space("toy")
    assert [block.name for block in space.blocks] == [
        "stage1_entry",
        "stage1_block1",
        "stage1_block2",
        "stage2_entry",
        "stage2_block1",
        "stage2_block2",
        "head",
    ]
    assert [block.optional for block in space.blocks] == [False, False, True] * 2 + [False]
    assert [block.is_fixed for block in space.blocks] == [True, False, False] * 2 + [True]
    assert [str(spec) for spec in space.specs()] == [
        "patch_stem 3->8 r32 k4 s4",
        "quadratic_depthwise 8->8 r8 k3",
        "quadratic_depthwise 8->8 r8 k5",
        "feed_forward 8->8 r8 e2",
        "feed_forward 8->8 r8 e4",
        "downsample 8->16 r8 k2 s2",
        "quadratic_depthwise 16->16 r4 k3",
        "quadratic_depthwise 16->16 r4 k5",
        "feed_forward 16->16 r4 e2",
        "feed_forward 16->16 r4 e4",
        "norm_head 16->10 r4",
    ]


def test_a_stage_without_entry_strides_and_widens_in_its_first_block() -> None:
    space = load_space("mbconv-mobile")
    blocks = [block for block in space.blocks if block.stage == "stage3"]
    assert [str(block.slots[0].candidates[0]) for block in blocks] == [
        "mbconv 32->40 r56 k3 s2 e3",
        "mbconv 40->40 r28 k3 e3",
        "mbconv 40->40 r28 k3 e3",
        "mbconv 40->40 r28 k3 e3",
    ]
    assert [block.optional for block in blocks] == [False, True, True, True]


# ---------------------------------------------------------------- faults of a file


KINDS = (
    "conv_bn, downsample, feed_forward, mbconv, patch_stem, quadratic_convnext, "
    "quadratic_depthwise, quadratic_mbconv"
)


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        ("headd", "x", "headd: unknown key (got 'x'); accepted: extends, head, name, "),
        ("head", "norm_heat", "unknown head 'norm_heat'; accepted: norm_head, linear_head; did"),
        ("head", ..., "head: required key is missing"),
        ("name", "../evil", "name: String should match pattern"),
        ("resolution", "big", "resolution: Input should be a valid integer (got 'big')"),
        ("resolution", 30, "stage 1 (stage1): impossible patch_stem: resolution 30 is not div"),
        ("resolution", 10**12, "(stage1): resolution: Input should be less than or equal to"),
        ("widths", [8], "1 widths for 2 stages"),
        ("widths", [8, 16, 32], "3 widths for 2 stages"),
        ("widths", [8, 0], "stage 2 (stage2): out_channels: Input should be greater than or"),
        ("widths", [8, "b"], "widths.1: Input should be a valid integer"),
        ("widths", 8, "widths: Input should be a valid list (got 8)"),
        ("stages", {}, "stages: Input should be a valid list"),
        ("stages.1.detph", 3, "stages.1.detph: unknown key (got 3); accepted: depth, entry, "),
        ("stages.1.detph", 3, "name, slots, stride; did you mean 'depth'?"),
        ("stages.0.depth", [3, 1], "stages.0: depth must be [min, max] with 0 <= min"),
        ("stages.0.depth", [-1, 1], "1 to 999, got [-1, 1]"),
        ("stages.0.depth", [0, 0], "1 to 999, got [0, 0]"),
        ("stages.0.depth", [1, 1000], "1 to 999, got [1, 1000]"),
        ("stages.0.depth", 2, "stages.0.depth: Input should be a valid list (got 2)"),
        ("stages.0.depth", [2], "stages.0.depth.1: required value is missing"),
        ("stages.0.depth", ..., "stages.0.depth: required key is missing"),
        (
            "stages.0.slots",
            [{"kind": "feed_forward", "expand_ratio": [1 + n / 1e5 for n in range(20_001)]}],
            "candidates; at most 20,000 are accepted",
        ),
        ("stages.1.name", "stage1", "two stages share the name 'stage1'"),
        ("stages.1.name", "stage1_entry", "two stages share the name 'stage1'"),
        ("stages.1.name", "head", "two stages share the name 'head'"),
        ("stages.1.name", "a b", "stages.1.name: String should match pattern"),
        (
            "stages.0.entry",
            ...,
            "stage 1 (stage1): impossible quadratic_depthwise: in_channels = out_channels",
        ),
        ("stages.0.entry.kind", "patch_sten", f"accepted: {KINDS}; did you mean 'patch_stem'?"),
        ("stages.0.entry.kind", "norm_head", f"unknown kind 'norm_head'; accepted: {KINDS}"),
        ("stages.0.entry.strid", 4, "stages.0.entry.strid: unknown key (got 4); accepted: "),
        ("stages.0.entry.stride", 2, "patches need kernel_size = stride, got 4 and 2"),
        ("stages.0.slots", [], "stages.0.slots: List should have at least 1 item"),
        ("stages.0.slots.0.kind", "linear_head", "unknown kind 'linear_head'; accepted: "),
        ("stages.0.slots.1.kind", "conv_bn", "impossible conv_bn: expand_ratio must be 1, got"),
        ("stages.0.slots.0.kernel_size", [4], "quadratic_depthwise: kernel_size must be odd"),
        ("stages.0.slots.0.kernel_size", [3, 3], "slots.0: a value is listed twice in [3, 3]"),
        ("stages.0.slots.0.kernel_size", [], "slots.0.kernel_size: List should have at least"),
        ("stages.0.slots.0.kernel_sise", [3], "accepted: expand_ratio, kernel_size, kind; did"),
        ("stages.0.slots.0.expand_ratio", [2], "expand_ratio must be 1, got 2"),
        ("stages.0.slots.1.expand_ratio", [0], "expand_ratio: Input should be greater than 0"),
        ("stages.0.slots.1.expand_ratio", [1e308], "less than or equal to 64 (got 1e+308)"),
        ("stages.0.slots.1.expand_ratio", ["x"], "slots.1.expand_ratio.0: Input should be a"),
    ],
)
def test_faults_name_file_key_path_value_and_nearest_key(
    toy: dict[str, Any],
    write_space: WriteSpace,
    path: str,
    value: Any,
    fault: str,
) -> None:
    change(toy, path, value)
    file = write_space(toy)
    with pytest.raises(QuadranasError) as caught:
        load_space(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert fault in str(caught.value)


def test_two_slots_of_one_kind_are_refused(toy: dict[str, Any], write_space: WriteSpace) -> None:
    toy["stages"][0]["slots"] = [{"kind": "feed_forward"}, {"kind": "feed_forward"}]
    message = r"stages.0: two slots of a block share a kind: \['feed_forward', 'feed_forward'\]"
    with pytest.raises(QuadranasError, match=message):
        load_space(write_space(toy))


def test_a_stage_without_entry_and_blocks_is_refused(
    toy: dict[str, Any], write_space: WriteSpace
) -> None:
    toy["stages"][1] |= {"depth": [0, 2]}
    assert load_space(write_space(toy)).num_architectures == 20 * 21
    del toy["stages"][1]["entry"]
    with pytest.raises(QuadranasError, match=r"stages.1: a stage without an entry needs at least"):
        load_space(write_space(toy))


def test_unknown_spaces_are_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(QuadranasError) as caught:
        load_space("quadranet-mobil")
    names = ", ".join(sorted(space_files()))
    assert caught.value.message == (
        f"unknown search space 'quadranet-mobil'; accepted: {names}; "
        "did you mean 'quadranet-mobile'?"
    )
    assert caught.value.hint == "Name one of these, or a .yaml file."
    with pytest.raises(QuadranasError, match=r"cannot read search space .*none.yaml: No such"):
        load_space(str(tmp_path / "none.yaml"))


@given(data=st.data())
def test_no_edit_of_a_file_raises_anything_else(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = yaml.safe_load(space_files()["toy"].read_text(encoding="utf-8"))
    place: Any = content
    key: Any = data.draw(st.sampled_from(sorted(place)))
    while isinstance(place[key], dict | list) and data.draw(st.booleans()):
        place = place[key]
        keys = sorted(place) if isinstance(place, dict) else range(len(place))
        key = data.draw(st.sampled_from(keys))
    small = st.integers(-2, 40) | st.sampled_from(["toy", 10**30, "feed_forward", "norm_head"])
    scalar = st.none() | st.booleans() | small | st.floats() | st.text(max_size=3)
    place[key] = data.draw(scalar | st.lists(small, max_size=3))
    file = tmp_path_factory.mktemp("edits") / "space.yaml"
    file.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    try:
        space = load_space(str(file))
    except QuadranasError as error:
        sound = str(error).startswith(f"{file}: ")
    else:
        networks = [space.extreme(count_params, largest=largest) for largest in (False, True)]
        sound = count_params(networks[0]) <= count_params(networks[1])
    assert sound


# ---------------------------------------------------------------- extends and widths


def test_extending_a_space(tmp_path: Path, write_space: WriteSpace) -> None:
    wide = load_space(write_space({"extends": "toy", "name": "wide", "widths": [24, 48]}))
    assert wide.name == "wide"
    assert [block.slots[0].candidates[0].out_channels for block in wide.blocks] == (
        [24] * 3 + [48] * 3 + [10]
    )
    beside = tmp_path / "second.yaml"
    beside.write_text("extends: third.yaml\nname: second\nresolution: 64", encoding="utf-8")
    text = space_files()["toy"].read_text(encoding="utf-8")
    (tmp_path / "third.yaml").write_text(text, encoding="utf-8")
    assert load_space(str(beside)).resolution == 64


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"extends": "toy"}, "name: a space that extends 'toy' needs its own name"),
        ({"extends": "toy", "name": "toy"}, "name: a space that extends 'toy' needs its own"),
        ({"extends": "toi", "name": "x"}, "unknown search space 'toi'.*did you mean 'toy'"),
        ({"extends": ["toy"], "name": "x"}, "unknown search space"),
        ({"extends": "no.yaml", "name": "x"}, r"cannot read search space .*no.yaml: No such file"),
        (
            {"extends": "toy", "name": "x", "width": [1]},
            "width: unknown key.*did you mean 'widths",
        ),
        (
            {"extend": "toy", "name": "x", "widths": [1]},
            "extend: unknown key.*accepted: extends, head, .*did you mean 'extends'.*\n"
            ".*: resolution: required key is missing",
        ),
        ({"extends": "toy", "name": "x", "widths": [1]}, "1 widths for 2 stages"),
        ({"extends": "space.yaml", "name": "x"}, "extends: 'space.yaml' itself extends another"),
    ],
)
def test_faulty_extensions(write_space: WriteSpace, content: dict[str, Any], message: str) -> None:
    with pytest.raises(QuadranasError, match=message):
        load_space(write_space(content))


def test_widths_from_python(toy: dict[str, Any], write_space: WriteSpace) -> None:
    space = load_space("toy", widths=(24, 48))
    assert space.name == "toy-24-48"
    assert space.digest != load_space("toy").digest
    assert space.num_architectures == 400
    with pytest.raises(QuadranasError, match=r"toy.yaml: 3 widths for 2 stages"):
        load_space("toy", widths=(8, 16, 32))
    with pytest.raises(QuadranasError, match=r"widths: List should have at least 1 item"):
        load_space("toy", widths=())
    del toy["name"]
    with pytest.raises(QuadranasError, match="name: required key is missing"):
        load_space(write_space(toy), widths=(8, 16))


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("my space.yaml", "my-space"),
        ("_x.yml", "x"),
        ("a.b-C_1.yaml", "a.b-C_1"),
        ("é.yaml", "space"),
    ],
)
def test_a_space_is_named_after_its_file(file: str, name: str) -> None:
    assert name_after(Path("folder", file)) == name
