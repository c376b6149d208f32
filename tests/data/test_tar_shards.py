"""Tar shards: labels, names of classes and splits, and what is said about bad input."""

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from quadranas.data.dataset import load_dataset
from quadranas.data.decoding import CorruptImageError
from quadranas.data.image_files import ImageFiles
from quadranas.data.listing import find_splits
from quadranas.errors import QuadranasError
from tests.data.sources import write_tar
from tests.pictures import noise


def png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(noise(seed, 24, 24, 3)).save(file, "PNG")
    return file.getvalue()


def shard(path: Path, *labels: str, start: int = 0) -> Path:
    """A shard with an image of noise for each label."""
    members = []
    for number, label in enumerate(labels, start):
        members += [(f"{number:04}.png", png(number)), (f"{number:04}.cls", label.encode())]
    return write_tar(path, members)


def listed(path: Path) -> ImageFiles:
    files, test = find_splits(path, None)
    assert test is None
    return files


# Labels and splits


def test_numbers_are_the_names_of_their_classes(tmp_path: Path) -> None:
    files = listed(shard(tmp_path / "a.tar", "10", "2", "2", "7"))
    assert files.class_names == ("2", "7", "10")
    assert files.labels.tolist() == [2, 0, 0, 1]
    assert files.members == tuple(f"000{number}.png" for number in range(4))


def test_texts_are_the_names_of_their_classes(tmp_path: Path) -> None:
    files = listed(shard(tmp_path / "a.tar", "dog", "cat\n", "3", "dog"))
    assert files.class_names == ("3", "cat", "dog")
    assert files.labels.tolist() == [2, 1, 0, 2]


def test_a_file_of_class_names_counts_from_zero(tmp_path: Path) -> None:
    path = shard(tmp_path / "a" / "x.tar", "2", "0")
    (tmp_path / "a" / "classes.txt").write_text("cat\ndog\nemu\n")
    assert listed(path).class_names == ("cat", "dog", "emu")
    assert listed(tmp_path / "a").labels.tolist() == [2, 0]
    (tmp_path / "a" / "classes.txt").write_text("\ufeffcat\r\ndog\r\nemu\r\n", "utf-8")
    assert listed(path).class_names == ("cat", "dog", "emu")


def test_labels_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    assert listed(shard(tmp_path / "a.tar", "\ufeff2", "0")).class_names == ("0", "2")


def test_a_cls_file_goes_before_a_json_file(tmp_path: Path) -> None:
    members = [
        *(("a.json", b'{"label": 5}'), ("a.png", png(1)), ("a.cls", b"1"), ("a.txt", b"a cat")),
        *(("b.cls", b"0"), ("b.json", b'{"label": 5}'), ("b.png", png(2))),
        *(("c.json", b'{"width": 3, "cls": 0}'), ("c.png", png(3)), ("d.cls", b"1")),
    ]
    files = listed(write_tar(tmp_path / "a.tar", members))
    assert files.labels.tolist() == [1, 0, 0]
    assert sum(files.left_out.values()) == 1  # the label without an image


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("imagenet-train-000.tar", "imagenet-validation-000.tar"),
        ("train/000.tar", "val/000.tar"),
        ("default/train/000.tar", "default/test/000.tar"),
        ("train_0.tar", "eval_0.tar"),
    ],
)
def test_names_of_shards_tell_the_split(tmp_path: Path, train: str, test: str) -> None:
    shard(tmp_path / train, "0", "1", "0")
    shard(tmp_path / test, "1", "0", start=10)
    first, second = find_splits(tmp_path, None)
    assert second is not None
    assert (len(first), len(second)) == (3, 2)
    assert second.member(0) == f"{test}/0010.png"


def test_shards_without_splits_are_one_whole_and_may_be_given_one_by_one(tmp_path: Path) -> None:
    one, other = shard(tmp_path / "0.tar", "0", "1"), shard(tmp_path / "1.tar", "1", "0", "1")
    assert len(listed(tmp_path)) == 5
    first, second = find_splits(one, other)
    assert second is not None
    assert (len(first), len(second)) == (2, 3)


def test_a_training_split_alone_is_divided(tmp_path: Path) -> None:
    shard(tmp_path / "train-0.tar", "0", "1")
    shard(tmp_path / "train-1.tar", "0", "1", start=2)
    assert len(listed(tmp_path)) == 4


# Bad input: each is one message that names the thing


def ends_early(path: Path) -> Path:
    content = shard(path, "0", "1", "0").read_bytes()
    path.write_bytes(content[: len(content) * 2 // 5])
    return path


def no_end(path: Path) -> Path:
    with tarfile.open(shard(path, "0", "1", "0")) as archive:
        end = archive.getmembers()[-1].offset_data + 512
    path.write_bytes(path.read_bytes()[:end])
    return path


def cut_in_a_header(path: Path) -> Path:
    with tarfile.open(shard(path, "0", "1", "0")) as archive:
        start = archive.getmembers()[-1].offset
    path.write_bytes(path.read_bytes()[: start + 100])
    return path


def damaged_in_the_middle(path: Path) -> Path:
    with tarfile.open(shard(path, "0", "1", "0")) as archive:
        start = archive.getmembers()[2].offset
    content = bytearray(path.read_bytes())
    content[start : start + 512] = b"x" * 512
    path.write_bytes(content)
    return path


def compressed(path: Path) -> Path:
    path.write_bytes(gzip.compress(shard(path, "0", "1").read_bytes()))
    return path


def compressed_by_name(path: Path) -> Path:
    return compressed(path).rename(path.with_suffix(".tgz"))


def doubled_label(path: Path) -> Path:
    return write_tar(path, [("0.png", png(0)), ("0.json", b'{"label": 0, "label": 1}')])


def no_tar(path: Path) -> Path:
    path.write_bytes(b"no tar" * 200)
    return path


def empty(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def no_members(path: Path) -> Path:
    return write_tar(path, [])


def no_label(path: Path) -> Path:
    return write_tar(path, [("0.png", png(0)), ("0.cls", b"0"), ("1.png", png(1))])


def empty_label(path: Path) -> Path:
    return shard(path, "0", "")


def no_label_in_json(path: Path) -> Path:
    return write_tar(path, [("0.png", png(0)), ("0.json", b'{"caption": "cat"}')])


def bad_json(path: Path) -> Path:
    return write_tar(path, [("0.png", png(0)), ("0.json", b'{"label": ')])


def list_as_label(path: Path) -> Path:
    return write_tar(path, [("0.png", png(0)), ("0.json", b'{"label": [1]}')])


def two_images(path: Path) -> Path:
    return write_tar(path, [("0.png", png(0)), ("0.jpg", png(0)), ("0.cls", b"0")])


def labels_alone(path: Path) -> Path:
    return write_tar(path, [("0.cls", b"0"), ("1.cls", b"1")])


def unlabelled(path: Path) -> Path:
    return shard(path, "-1", "-1", "0")


def one_class(path: Path) -> Path:
    return shard(path, "4", "4")


def beyond_the_names(path: Path) -> Path:
    (path.parent / "classes.txt").write_text("cat\ndog\n")
    return shard(path, "0", "1", "2")


def unprintable(path: Path) -> Path:
    return shard(path, "a\x00b", "c")


def unnamed_split(path: Path) -> Path:
    shard(path.parent / "b" / "train-0.tar", "0", "1")
    shard(path.parent / "b" / "more.tar", "0", "1")
    return path.parent / "b"


def no_training_split(path: Path) -> Path:
    shard(path.parent / "b" / "test-0.tar", "0", "1")
    shard(path.parent / "b" / "val-0.tar", "0", "1")
    return path.parent / "b"


EARLY = r"shard .*\.tar is no tar file, is damaged, or ends early: "
BAD_INPUTS = [
    (ends_early, f"{EARLY}unexpected end of data", "pack it again"),
    (no_end, f"{EARLY}without the mark of its end at byte", "pack it again"),
    (cut_in_a_header, f"{EARLY}without the mark of its end at byte", "pack it again"),
    (damaged_in_the_middle, f"{EARLY}damaged at byte", "pack it again"),
    (compressed, r"shard .*\.tar is compressed with gzip; .* uncompressed tar", "Unpack it"),
    (compressed_by_name, r"shard .*\.tgz is compressed with gzip", "Unpack it"),
    (doubled_label, r"label 0\.json in .* is not valid: duplicate key 'label'", "Accepted"),
    (no_tar, EARLY, "pack it again"),
    (empty, EARLY, "pack it again"),
    (no_members, r"--data .*\.tar contains no files with an image extension", "tar shards"),
    (no_label, r"sample 1 in .*\.tar has no label; accepted: a file 1\.cls", "Pack the labels"),
    (empty_label, r"sample 0001 in .*\.tar has no label", "Pack the labels"),
    (no_label_in_json, r"sample 0 in .* no label; .* 0\.json with it under label", "labels"),
    (bad_json, r"label 0\.json in .*\.tar is not valid: Expecting value", "Accepted"),
    (list_as_label, r"label 0\.json in .* is a list; accepted: the number or the name", ""),
    (two_images, r"sample 0 in .* has 2 images \(\.png, \.jpg\); accepted: 1", "train on"),
    (labels_alone, r"contains no samples with an image, such as 000\.jpg", "Accepted"),
    (unlabelled, r"labels without a class: -1; accepted: 0 and above", "without labels"),
    (one_class, r"has only one class, '4'; at least 2 are needed", "Accepted"),
    (beyond_the_names, r"labels without a class: 2; accepted: 0 to 1", "without labels"),
    (unprintable, r"class 'a\\x00b' of .* has a name that cannot be a label", "Rename the class"),
    (unnamed_split, r"the split of .*more\.tar is unknown: its name contains none", "Rename it"),
    (no_training_split, r"has shards of test, val, but none of train", "Accepted"),
]


@pytest.mark.parametrize(
    ("write", "message", "hint"), BAD_INPUTS, ids=[write.__name__ for write, _, _ in BAD_INPUTS]
)
def test_bad_input_is_refused_in_one_message(
    tmp_path: Path, write: Callable[[Path], Path], message: str, hint: str
) -> None:
    with pytest.raises(QuadranasError, match=message) as caught:
        find_splits(write(tmp_path / "a.tar"), None)
    assert hint in caught.value.hint


def test_a_sample_twice_is_refused(tmp_path: Path) -> None:
    for name in ("a/0.tar", "a/1.tar"):
        shard(tmp_path / name, "0", "1")
    assert len(listed(tmp_path / "a")) == 4  # their shards tell them apart
    members = [(f"{n}.png", png(n)) for n in (0, 1)] + [("0.cls", b"0"), ("1.cls", b"1")]
    with pytest.raises(QuadranasError, match=r"sample 0 in .* has 2 images \(\.png, \.png\)"):
        listed(write_tar(tmp_path / "b.tar", [*members, members[0]]))


def test_a_shard_that_shrinks_later_is_said_to(tmp_path: Path) -> None:
    path = shard(tmp_path / "a.tar", *"01" * 4)
    data = load_dataset(path, resolution=16)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3])
    assert data.test.samples is not None
    with pytest.raises(CorruptImageError, match=r"its shard a\.tar ends early"):
        data.test.samples.batch(range(len(data.test)))


def test_links_and_sparse_files_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    shard(path, "0", "1")
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("0009.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    files = listed(path)
    assert len(files) == 2
    assert [(kind.kind, number) for kind, number in files.left_out.items()] == [("link", 1)]
