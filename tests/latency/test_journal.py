"""The journal of a measurement: nothing that was taken is lost, and nothing is taken for it."""

import json
import math
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from quadranas.errors import QuadranasError
from quadranas.latency.journal import Calls, Journal, Samples
from tests.command_line import CHECKOUT

IDENTITY: dict[str, Any] = {
    "kind": "build-lut",
    "device": "board",
    "threads": 1,
    "precision": None,
}
TAKEN: list[tuple[str, int, list[float]]] = [
    ("stem x1", 0, [0.1, 0.25]),
    ("stem x1", 1, [1 / 3, 2e-7]),
    ("reference 0", 0, [3.0, 12345.678]),
]


def filled(path: Path) -> Samples:
    with Journal(path, IDENTITY) as journal:
        for program, number, times in TAKEN:
            journal.add(program, number, times)
        return journal.samples


def read(path: Path, identity: dict[str, Any] | None = None) -> Samples:
    with Journal(path, identity or IDENTITY) as journal:
        return journal.samples


def test_a_journal_is_continued(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "t.timings"
    samples = filled(path)
    assert samples == {
        "stem x1": {0: [0.1, 0.25], 1: [1 / 3, 2e-7]},
        "reference 0": {0: [3.0, 12345.678]},
    }
    before = path.read_bytes()
    with Journal(path, IDENTITY) as journal:
        assert journal.samples == samples
        assert journal.num_timings == len(TAKEN)
        journal.add("head x1", 4, [5.0])
    assert path.read_bytes().startswith(before)
    assert read(path)["head x1"] == {4: [5.0]}


def test_a_line_is_on_the_disk_when_it_is_added(tmp_path: Path) -> None:
    path = tmp_path / "t.timings"
    with Journal(path, IDENTITY) as journal:
        for count, taken in enumerate(TAKEN, start=1):
            journal.add(*taken)
            assert len(path.read_bytes().splitlines()) == 1 + count


def test_a_journal_that_is_removed_leaves_nothing(tmp_path: Path) -> None:
    with Journal(tmp_path / "t.timings", IDENTITY) as journal:
        journal.add(*TAKEN[0])
        journal.remove()
    assert list(tmp_path.iterdir()) == []


def test_without_a_file_a_journal_is_kept_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Journal(None, {}) as journal:
        journal.add(*TAKEN[0])
        assert journal.num_timings == 1
        journal.remove()
    assert list(tmp_path.iterdir()) == []


def whole_content() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        filled(Path(folder) / "t")
        return (Path(folder) / "t").read_bytes()


WHOLE = whole_content()


@given(size=st.integers(0, len(WHOLE)))
def test_what_a_killed_process_was_writing_is_dropped(size: int) -> None:
    """Torn at any byte: every whole line before it counts, and the journal goes on after it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t"
        path.write_bytes(WHOLE[:size])
        kept = TAKEN[: max(0, WHOLE[:size].count(b"\n") - 1)]
        expected: Samples = {}
        for program, number, times in kept:
            expected.setdefault(program, {})[number] = times
        assert read(path) == expected
        for taken in TAKEN[len(kept) :]:
            with Journal(path, IDENTITY) as journal:
                journal.add(*taken)
        assert path.read_bytes() == WHOLE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "other"}, "with device 'board'; expected 'other'"),
        ({"threads": 2}, "with threads 1; expected 2"),
        ({"precision": "fp32"}, "with precision None; expected 'fp32'"),
        ({"clock": "2 GHz"}, "with clock None; expected '2 GHz'"),
    ],
)
def test_another_measurement_is_not_continued(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = tmp_path / "t.timings"
    filled(path)
    before = path.read_bytes()
    with pytest.raises(QuadranasError, match=message) as caught:
        Journal(path, IDENTITY | changes)
    assert str(path) in caught.value.message
    assert "delete the file" in caught.value.hint
    assert path.read_bytes() == before


def test_a_key_that_is_no_longer_there_is_named(tmp_path: Path) -> None:
    filled(tmp_path / "t.timings")
    shorter = {key: value for key, value in IDENTITY.items() if key != "threads"}
    with pytest.raises(QuadranasError, match="with threads 1; expected None"):
        Journal(tmp_path / "t.timings", shorter)


def assert_whole_or_refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "t"
        path.write_bytes(content)
        samples: Samples = {}
        message = ""
        try:
            samples = read(path)
        except QuadranasError as error:
            message = error.message
        assert not message or str(path) in message
        for rounds in samples.values():
            for times in rounds.values():
                assert times
                assert all(math.isfinite(ms) and ms > 0 for ms in times)


HEAD = WHOLE.splitlines()[0] + b"\n"


@given(content=st.binary(max_size=60))
@example(content=b'{"identity": "text"}\n')
@example(content=b'{"identity": 5}\n')
@example(content=b'{"identity": ["device"]}\n')
@example(content=b'{"identity": null}\n')
@example(content=b"[" * 100_000 + b"\n")
@example(content=b"9" * 5000 + b"\n")
@example(content=b"\xff\xfe\n")
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    assert_whole_or_refused(content)
    assert_whole_or_refused(HEAD + content + b"\n")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(
    content=st.fixed_dictionaries(
        {}, optional={"program": json_values, "round": json_values, "ms": json_values}
    )
    | json_values
)
@example(content={"program": "stem x1", "round": math.inf, "ms": [1.0]})
@example(content={"program": "stem x1", "round": 0, "ms": []})
@example(content={"program": "stem x1", "round": 0, "ms": [math.nan]})
@example(content={"program": "stem x1", "round": 0, "ms": [10**400]})
@example(content={"program": "stem x1", "round": 0, "ms": [-1.0]})
def test_any_json_is_read_or_refused(content: Any) -> None:
    assert_whole_or_refused(HEAD + json.dumps(content).encode() + b"\n")


@given(position=st.integers(0, len(WHOLE) - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_is_read_or_refused(position: int, bit: int) -> None:
    content = bytearray(WHOLE)
    content[position] ^= 1 << bit
    assert_whole_or_refused(bytes(content))


def run_python(script: str, *argv: str | Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(CHECKOUT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, argv)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


OPEN = """
import sys
from pathlib import Path
from quadranas.errors import QuadranasError
from quadranas.latency.journal import Journal
try:
    Journal(Path(sys.argv[1]), {"kind": "any"})
except QuadranasError as error:
    sys.exit(str(error))
"""


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.timings"
    with Journal(path, IDENTITY) as journal:
        journal.add(*TAKEN[0])
        before = path.read_bytes()
        second = run_python(OPEN, path)
        assert second.returncode == 1
        assert second.stderr.splitlines() == [
            f"another process is measuring into {path}",
            "Wait for it, or choose another --output.",
        ]
        assert path.read_bytes() == before
    second = run_python(OPEN, path)
    assert "with kind 'build-lut'; expected 'any'" in second.stderr


FILL = """
import json, resource, sys
from pathlib import Path
from quadranas.errors import QuadranasError
from quadranas.latency.journal import Journal
path, limit, identity = Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
count = 0
try:
    with Journal(path, identity) as journal:
        for count in range(1000):
            journal.add("stem x1", count, [1.0 + count])
except QuadranasError as error:
    print(count)
    sys.exit(str(error))
"""


@pytest.mark.parametrize("limit", [len(HEAD), len(HEAD) + 1, len(HEAD) + 500, 1000])
def test_a_full_disk_keeps_what_was_measured(tmp_path: Path, limit: int) -> None:
    path = tmp_path / "t.timings"
    done = run_python(FILL, path, str(limit), json.dumps(IDENTITY))
    assert done.returncode == 1
    message, hint = done.stderr.splitlines()
    assert message.startswith(f"cannot write {path}: ")
    assert message.endswith("; the timings so far are kept")
    assert "choose another --output" in hint
    kept = int(done.stdout)
    assert kept == 0 or limit > len(HEAD) + 1
    samples = read(path)
    assert samples.get("stem x1", {}) == {number: [1.0 + number] for number in range(kept)}
    with Journal(path, IDENTITY) as journal:
        journal.add("stem x1", kept, [7.0])
    assert read(path)["stem x1"][kept] == [7.0]


def test_a_disk_full_from_the_beginning_is_explained(tmp_path: Path) -> None:
    done = run_python(FILL, tmp_path / "t.timings", "3", json.dumps(IDENTITY))
    assert "cannot write" in done.stderr
    assert read(tmp_path / "t.timings") == {}


def a_file(folder: Path) -> Path:
    (folder / "file").write_text("text")
    return folder / "file" / "t.timings"


def a_folder(folder: Path) -> Path:
    (folder / "t.timings").mkdir()
    return folder / "t.timings"


@pytest.mark.parametrize("place", [a_file, a_folder])
def test_a_place_that_cannot_be_written_is_named(
    tmp_path: Path, place: Callable[[Path], Path]
) -> None:
    path = place(tmp_path)
    with pytest.raises(QuadranasError, match=f"cannot write {path}: "):
        Journal(path, IDENTITY)


def test_the_limit_of_a_file_s_size_is_only_the_child_s() -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_what_lost_the_processor_and_what_is_begun_again_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "t.timings"
    with Journal(path, IDENTITY) as journal:
        journal.add("a", 0, [1.0], Calls(made=3, disturbed=2))
        journal.add("a", 1, [2.0])
        journal.add("b", 0, [5.0], Calls(made=1, disturbed=0))
        assert journal.has_rounds("a", 2)
        journal.begin_again(["a"])
        assert not journal.has_rounds("a", 1)
        journal.add("a", 2, [3.0], Calls(made=2, disturbed=1))
    with Journal(path, IDENTITY) as journal:
        assert journal.samples == {"a": {2: [3.0]}, "b": {0: [5.0]}}
        assert journal.calls == {"a": {2: Calls(2, 1)}, "b": {0: Calls(1, 0)}}
        assert journal.begun == {"a": 2}
        assert journal.has_rounds("a", 1)
        assert journal.num_timings == 2


@pytest.mark.parametrize(("made", "disturbed"), [(2, 3), (0, 0), (2, -1), ("x", 0)])
def test_impossible_numbers_of_calls_are_damage(
    tmp_path: Path, made: object, disturbed: int
) -> None:
    path = tmp_path / "t.timings"
    filled(path)
    line = {"program": "a", "round": 0, "ms": [1.0], "calls": made, "disturbed": disturbed}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    with pytest.raises(QuadranasError, match="damaged"):
        read(path)
