"""What a release consists of besides the package: workflows, container, citation, templates."""

import re
import shlex
from configparser import RawConfigParser
from pathlib import Path
from typing import Any

import pytest

from quadranas import __version__
from quadranas.files import read_yaml

ROOT = Path(__file__).parents[1]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
TEMPLATES = sorted(
    set((GITHUB / "ISSUE_TEMPLATE").glob("*.yml")) - {GITHUB / "ISSUE_TEMPLATE/config.yml"}
)
PAPERS = {"arXiv:2311.17956", "arXiv:2405.03192", "arXiv:2204.01701", "arXiv:1812.00332"}
ACTION = re.compile(r"[\w-]+/[\w-]+@(v\d+|release/v\d+)")


def named(path: Path) -> str:
    return path.stem


def make_targets() -> set[str]:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z][a-z-]*):", text, flags=re.MULTILINE))


def steps_of(path: Path) -> list[dict[str, Any]]:
    jobs = read_yaml(path, "workflow")["jobs"]
    return [step for job in jobs.values() for step in job["steps"]]


def test_there_is_a_workflow_for_every_purpose() -> None:
    assert [path.stem for path in WORKFLOWS] == ["ci", "docs", "release"]
    assert [path.stem for path in TEMPLATES] == ["bug", "device", "feature"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=named)
def test_workflows_call_what_developers_call(path: Path) -> None:
    workflow = read_yaml(path, "workflow")
    assert workflow["permissions"] == {"contents": "read"}
    assert all(job["timeout-minutes"] <= 60 for job in workflow["jobs"].values())
    steps = steps_of(path)
    for step in steps:
        assert ("uses" in step) != ("run" in step)
        assert "uses" not in step or ACTION.fullmatch(step["uses"]), step
    commands = [shlex.split(step["run"]) for step in steps if "run" in step]
    called = {words[1] for words in commands if words[0] == "make"}
    assert called or path.stem == "release"
    assert called <= make_targets()
    assert {words[0] for words in commands} <= {"make", "docker"}


def test_the_tests_run_on_every_supported_python() -> None:
    setup = RawConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    supported = re.findall(r"Python :: (3\.\d+)", setup["metadata"]["classifiers"])
    ci = read_yaml(GITHUB / "workflows" / "ci.yml", "workflow")
    assert ci["jobs"]["test"]["strategy"]["matrix"]["python"] == supported


def test_only_the_publishing_job_gets_an_identity() -> None:
    jobs = read_yaml(GITHUB / "workflows" / "release.yml", "workflow")["jobs"]
    assert {name: job.get("permissions") for name, job in jobs.items()} == {
        "build": None,
        "publish": {"id-token": "write"},
    }
    assert jobs["publish"]["environment"]["name"] == "pypi"
    assert jobs["publish"]["needs"] == "build"
    text = (GITHUB / "workflows" / "release.yml").read_text(encoding="utf-8")
    assert "secrets." not in text


@pytest.mark.parametrize("path", TEMPLATES, ids=named)
def test_issue_forms_are_complete(path: Path) -> None:
    form = read_yaml(path, "issue form")
    assert {"name", "description", "body"} <= set(form)
    ids = [field["id"] for field in form["body"]]
    assert len(set(ids)) == len(ids)
    for field in form["body"]:
        assert field["type"] in ("input", "textarea", "dropdown", "checkboxes", "markdown")
        assert field["attributes"]["label"]


def test_a_container_runs_the_demo() -> None:
    lines = (ROOT / ".ci" / "Dockerfile").read_text(encoding="utf-8").splitlines()
    (command,) = [line for line in lines if line.startswith("CMD ")]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    demo = re.findall(r"^\t\$\(BIN\)/(quadranas (?:search|export) .*)$", makefile, re.MULTILINE)
    assert len(demo) == 2
    assert command == f'CMD ["sh", "-c", "{" && ".join(demo)}"]'


def test_the_container_gets_what_is_installed() -> None:
    ignore = (ROOT / ".ci" / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert ignore[1] == "*"
    sent = {line[1:] for line in ignore if line.startswith("!")}
    assert sent == {
        *("quadranas", "search_spaces", "latency_tables", "setup.cfg", "pyproject.toml"),
        *("constraints.txt", "README.md", "LICENSE"),
    }
    assert all((ROOT / name).exists() for name in sent)


def test_the_citation_names_version_and_papers() -> None:
    citation = read_yaml(ROOT / "CITATION.cff", "citation")
    assert str(citation["version"]) == __version__
    assert (citation["cff-version"], citation["type"]) == ("1.2.0", "software")
    found = {one["identifiers"][0]["value"]: one for one in citation["references"]}
    assert set(found) == PAPERS
    for paper, one in found.items():
        assert one["url"] == f"https://arxiv.org/abs/{paper.removeprefix('arXiv:')}"
        assert all(set(author) == {"family-names", "given-names"} for author in one["authors"])


@pytest.mark.parametrize("name", ["CODE_OF_CONDUCT.md", "SECURITY.md"])
def test_community_files_say_how_to_report(name: str) -> None:
    text = (GITHUB / name).read_text(encoding="utf-8")
    assert "Report a vulnerability" in text
