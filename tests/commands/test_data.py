"""`quadranas data`: what is said of a data set, on the terminal, as JSON and as a page."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

import quadranas
from quadranas import DataResult
from quadranas.errors import QuadranasError
from tests.command_line import call
from tests.data.sources import SOURCES
from tests.pictures import text, truncate, write_classes
from tests.typed_results import parsed


@pytest.fixture(autouse=True)
def pets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Seven images per class of 20 to 32 pixels, two of which are damaged."""
    monkeypatch.chdir(tmp_path)
    root = write_classes(tmp_path / "pets", ("cat", "d<o>g"), count=7, size=20)
    Image.new("L", (40, 32), 9).resize((40, 32)).save(root / "cat" / "large.jpg")
    truncate(root / "cat" / "003.png")
    text(root / "d<o>g" / "001.png")
    return root


def test_splits_classes_sizes_and_damage_are_shown(pets: Path) -> None:
    outcome = call("data", "pets")
    assert outcome.code == 0, outcome.err
    found = quadranas.describe_data("pets", output="again.html")
    assert (found.kind, found.is_held_out, found.val) == ("folder", True, None)
    train, test = found.splits
    assert (train.name, test.name) == ("train", "test")
    assert train.num_images + test.num_images == 15
    assert train.num_bytes + test.num_bytes == sum(p.stat().st_size for p in pets.glob("*/*"))
    assert {**train.corrupt, **test.corrupt} == {
        "cat/003.png": "image file is truncated",
        "d<o>g/001.png": "not an image Pillow can read",
    }
    assert found.num_corrupt == 2
    sides = {(s.smallest_side, s.median_side, s.largest_side) for s in found.splits}
    assert sides == {(20, 20, 32), (20, 20, 20)}
    assert sum(s.formats.get("JPEG", 0) for s in found.splits) == 1
    assert [(c.name, c.num_train + c.num_test) for c in found.classes] == [
        ("cat", 8),
        ("d<o>g", 7),
    ]
    assert "1 of 13 images is of one colour only (cat/large.jpg" in found.warnings[0]
    for said in ("test (held out)", "pets: folder, 2 classes", "corrupt: cat/003.png: image file"):
        assert said in outcome.out
    assert outcome.out.rstrip().endswith("page data-pets.html")
    assert Path("data-pets.html").read_bytes() == Path("again.html").read_bytes()


def test_json_is_the_result() -> None:
    found = parsed(call("data", "pets", "--json", "--output", "page.html"), DataResult)
    assert found.page == Path("page.html")


class Page(HTMLParser):
    """The images of a page, and the tags that are open at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attrs))
        elif tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_has_a_contact_sheet_and_needs_nothing_else() -> None:
    quadranas.describe_data("pets", output="page.html")
    content = Path("page.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(content)
    assert page.open == []
    assert "<o>" not in content
    torn = content.count('class="torn"')
    train = quadranas.describe_data("pets").splits[0]
    assert torn == len(train.corrupt)
    assert len(page.images) == train.num_images - torn
    for image in page.images:
        kind, _, data = str(image["src"]).partition(",")
        assert kind == "data:image/jpeg;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (96, 96)
    assert not re.search(r"(src|href)=\"(?!data:)", content)
    for heading in ("Splits", "Classes", "Corrupt images", "Warnings", "Contact sheet"):
        assert f"<h2>{heading}</h2>" in content


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_is_described(tmp_path: Path, name: str) -> None:
    write_classes(tmp_path / "new" / "train", count=4, size=20)
    write_classes(tmp_path / "new" / "test", count=2, size=20)
    found = quadranas.describe_data(SOURCES[name](tmp_path / "new", tmp_path / "data"))
    assert [(s.num_images, s.formats, s.corrupt) for s in found.splits] == [
        (8, {"PNG": 8}, {}),
        (4, {"PNG": 4}, {}),
    ]
    assert [c.num_test for c in found.classes] == [2, 2]
    assert not found.is_held_out


def test_a_second_path_has_the_test_images(tmp_path: Path) -> None:
    write_classes(tmp_path / "val", ("cat", "d<o>g"), count=2, size=20)
    outcome = call("data", "pets", "--val", "val", "--quiet", "--json")
    assert outcome.json()["val"] == "val"
    assert outcome.json()["splits"][1]["num_images"] == 4


def test_all_pixels_are_verified_on_demand(pets: Path) -> None:
    content = bytearray((pets / "cat" / "005.png").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (pets / "cat" / "005.png").write_bytes(content)
    assert quadranas.describe_data("pets").num_corrupt == 2
    assert quadranas.describe_data("pets", verify="full").num_corrupt == 3


def test_what_cannot_be_understood_is_one_message(tmp_path: Path) -> None:
    outcome = call("data", "absent")
    assert outcome.code == 2
    assert "error: --data absent does not exist" in outcome.err
    write_classes(tmp_path / "val", ("cat", "emu"), count=2, size=20)
    assert "differ; only in training: d<o>g" in call("data", "pets", "--val", "val").err
    with pytest.raises(QuadranasError, match="unknown verification 'some'; accepted: ends, full"):
        quadranas.describe_data("pets", verify="some")  # type: ignore[arg-type]


def test_many_classes_are_cut(tmp_path: Path) -> None:
    write_classes(tmp_path / "many", tuple(f"c{n:03}" for n in range(210)), count=3, size=8)
    outcome = call("data", "many")
    assert "  and 190 more classes" in outcome.out
    content = Path("data-many.html").read_text(encoding="utf-8")
    assert "And 10 more classes." in content
    assert "The first 40 of 210 classes." in content
