"""compare: several bundles on one device, on the same images and in the same rounds."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from quadranas.commands.compare import compare
from quadranas.commands.export import export
from quadranas.deployment.bundle import checksums, write_manifest
from quadranas.deployment.manifest import InputDescription, LatencyNote
from quadranas.errors import QuadranasError
from quadranas.reports.bundle_page import ComparedBundle, bundle_page
from tests.bundles import manifest_of, toy_architecture, toy_network, write_bundle
from tests.command_line import call
from tests.contracts.test_names import NAME, check_page

pytestmark = pytest.mark.usefixtures("exports")
SIZE = toy_architecture().resolution


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished_run: Path) -> Path:
    """A copy of a run, in an own folder; no call counts as disturbed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("quadranas.measurement.timing.LOST", 2.0)
    shutil.copytree(finished_run, "run")
    return Path("run")


def test_two_formats_are_tested_and_timed_together(run: Path, pictures: Path) -> None:
    exported = [export(run, format=name) for name in ("onnx", "torch")]
    result = compare([one.bundle for one in exported], data=pictures, output="page.html")
    assert [one.format for one in result.bundles] == ["onnx", "torch"]
    assert (result.device, result.batch_size) == ("host", 1)
    assert result.rounds is not None
    assert result.rounds >= 2  # more where others keep the machine busy
    for one, known in zip(result.bundles, exported, strict=True):
        assert one.accuracy == known.accuracy == one.export_accuracy
        assert one.num_images == 8
        assert one.latency_ms is not None
        assert one.latency_ms > 0
        assert (one.agreement, one.relative_error) == (1.0, known.relative_error)
        assert one.size_bytes == known.size_bytes
    fastest = min(result.bundles, key=lambda one: one.latency_ms or 0)
    assert [one for one in result.bundles if one.on_front] == [fastest]
    page = Path("page.html").read_text("utf-8")
    assert "Accuracy against latency" in page
    assert all(one.sha256[:12] in page for one in result.bundles)
    about_images, about_noise = result.notes
    assert about_images == f"accuracy: 8 images ({result.bundles[0].images})"
    assert about_noise.startswith("latencies by odd and by even rounds differ by up to ")


@pytest.fixture
def bundle(run: Path, tmp_path: Path, scramble: Callable[..., nn.Module]) -> Callable[..., Path]:
    """Writes a bundle of the toy network, with changes of its manifest."""

    def write(name: str, **changes: Any) -> Path:
        write_bundle(tmp_path / name, manifest_of("onnx", **changes), toy_network(scramble))
        return Path(name)

    return write


def test_what_is_missing_is_said(bundle: Callable[..., Path]) -> None:
    one, other = bundle("one"), bundle("other", class_names=None, trained=False)
    outcome = call("compare", one, other, "--rounds", "2", "--quiet")
    assert outcome.code == 0, outcome.err
    assert "one is not tested: no images of its classes were named (--data)" in outcome.out
    assert "other is not tested: the manifest records no classes or no norm" in outcome.out
    assert "other was exported untrained, so its labels are random" in outcome.out
    assert "page comparison.html" in outcome.out
    assert "not tested" in Path("comparison.html").read_text("utf-8")


def test_a_busy_machine_is_not_measured(
    bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quadranas.measurement.timing.LOST", -1.0)
    result = compare([bundle("one"), bundle("other")])
    for one in result.bundles:
        if one.dropped is None and one.latency_ms is not None:
            pytest.skip("this system does not tell which calls lost the processor")
        assert one.latency_ms is None
        assert one.not_measured.startswith("the machine was busy")
        assert one.on_front is None
    assert result.notes[0].startswith("one is not measured: the machine was busy")


def test_bundles_that_cannot_be_compared(bundle: Callable[..., Path], pictures: Path) -> None:
    one = bundle("one")
    wide = bundle("wide", input=InputDescription(shape=(3, 3, SIZE, SIZE)))
    with pytest.raises(QuadranasError, match="one and wide cannot be compared: the number of im"):
        compare([one, wide])
    with pytest.raises(QuadranasError, match="only one bundle to compare"):
        compare([one])
    with pytest.raises(QuadranasError, match=r"the data's classes \(cat, dog\) are not those"):
        compare([one, one], data=pictures)
    manifest = manifest_of("onnx")
    board = manifest.device.model_copy(update={"name": "board"})
    other = bundle("other", device=board, made_for=board)
    with pytest.raises(QuadranasError, match="the device is 'host' in one and 'board' in the"):
        compare([one, other])
    (other / "infer.py").write_text("other")
    with pytest.raises(QuadranasError, match="differs from the exported file"):
        compare([one, other])
    assert not Path("comparison.html").exists()


def test_a_page_that_cannot_be_written_is_found_before_anything_is_timed(tmp_path: Path) -> None:
    with pytest.raises(QuadranasError, match=r"cannot write .*: it is a folder, not a file"):
        compare(["none", "of these"], output=tmp_path)


def test_machine_code_needs_leave(tmp_path: Path) -> None:
    folder = tmp_path / "native"
    folder.mkdir()
    (folder / "model.so").write_bytes(b"no library")
    manifest = manifest_of("tvm")
    write_manifest(folder, manifest.model_copy(update={"files": checksums(folder)}))
    with pytest.raises(QuadranasError, match="is machine code, which can do anything") as caught:
        compare([folder, folder])
    assert "--allow-native-code" in caught.value.hint


def compared(name: str, **changes: Any) -> ComparedBundle:
    """A file as it is compared."""
    manifest = manifest_of("onnx")
    content = {
        **{key: getattr(manifest, key) for key in ("format", "precision", "runtime", "params")},
        **{key: getattr(manifest, key) for key in ("macs", "size_bytes")},
        **dict.fromkeys(("p50_ms", "p95_ms", "spread", "dropped", "export_ms"), None),
        **{"bundle": name, "name": name, "resolution": SIZE, "sha256": "0" * 64},
        **{"latency_ms": 1.5, "not_measured": "", "accuracy": 0.9, "images": "digits"},
        **{"num_images": 9, "not_tested": "", "export_accuracy": 0.9, "agreement": 1.0},
        **{"relative_error": 1e-6, "num_compared": 9},
    }
    return ComparedBundle.model_validate(content | changes)


@pytest.mark.usefixtures("rendered")
def test_the_page_of_hostile_names() -> None:
    bundles = [compared(NAME), compared(f"{NAME}2", runtime=NAME, latency_ms=2.0)]
    check_page(bundle_page(NAME, bundles, [NAME]))


def test_the_latency_at_export_is_that_of_the_device(bundle: Callable[..., Path]) -> None:
    elsewhere = {"measured": LatencyNote(device="board", ms=9.0, source="a board")}
    one, other = bundle("one"), bundle("other", latency=elsewhere)
    result = compare([one, other], rounds=2)
    assert [one.export_ms for one in result.bundles] == [0.1234, None]
