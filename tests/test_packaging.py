"""The package as it is installed: what it carries, what it declares, what importing it costs."""

import ast
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from configparser import RawConfigParser
from importlib.metadata import entry_points, packages_distributions
from pathlib import Path
from zipfile import ZipFile

import pytest

from quadranas.commands.validate_lut import VALIDATION
from quadranas.latency.table_files import table_paths
from quadranas.measurement.bench import RECORDS
from quadranas.measurement.timing import TIMINGS

ROOT = Path(__file__).parents[1]
SHIPPED = {
    "search_spaces": "quadranas/search_spaces",
    "latency_tables": "quadranas/latency_tables",
    "quadranas/latency/devices": "quadranas/latency/devices",
    "quadranas/runs/recipes": "quadranas/runs/recipes",
}
RUNTIMES = ("onnx", "onnxruntime", "onnxscript", "tvm")
HEAVY = {"torch", "kornia", "scipy", "sklearn", "matplotlib", "pandas", "tensorboard", *RUNTIMES}


@pytest.fixture(scope="module")
def setup_cfg() -> RawConfigParser:
    parser = RawConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def distribution(requirement: str) -> str:
    """The normalised name at the start of a requirement or of a pin."""
    name = re.match(r"[\w.-]+", requirement)
    assert name is not None
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def declared(setup_cfg: RawConfigParser, *extras: str) -> set[str]:
    lines = setup_cfg["options"]["install_requires"].split("\n")
    for extra in extras:
        lines += setup_cfg["options.extras_require"][extra].split("\n")
    return {distribution(line) for line in lines if line and not line.startswith("#")}


def imported(files: Iterable[Path]) -> dict[str, Path]:
    """Distributions outside the standard library that files import, each with one of the files."""
    found: dict[str, Path] = {}
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0]: file for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found[node.module.split(".")[0]] = file
    known = {"mlflow": ["mlflow-skinny"], **packages_distributions()}  # it is not installed
    own = {*sys.stdlib_module_names, "quadranas", "tests", "experiments", "docs"}
    return {
        distribution(known.get(name, [name])[0]): file.relative_to(ROOT)
        for name, file in found.items()
        if name not in own
    }


def heavy_modules_after(code: str) -> list[str]:
    """The heavy packages that a fresh interpreter has imported after running some code."""
    report = f"import sys; print('\\nheavy:', *sorted(sys.modules.keys() & {HEAVY}))"
    result = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1].split()[1:]


def test_the_package_imports_nothing_heavy() -> None:
    assert heavy_modules_after("import quadranas") == []


def test_help_imports_nothing_heavy() -> None:
    code = """
import sys
from quadranas.cli.app import main
sys.argv = ["quadranas", "--help"]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""
    assert heavy_modules_after(code) == []


def test_the_console_script_is_the_command_line() -> None:
    (script,) = entry_points(group="console_scripts", name="quadranas")
    assert script.value == "quadranas.cli.app:main"


def test_every_package_of_the_tree_is_listed(setup_cfg: RawConfigParser) -> None:
    in_tree = {
        ".".join(file.parent.relative_to(ROOT).parts)
        for file in (ROOT / "quadranas").rglob("__init__.py")
    }
    listed = set(setup_cfg["options"]["packages"].split())
    outside = {"quadranas.latency_tables", "quadranas.search_spaces"}
    assert listed == in_tree | outside


@pytest.mark.parametrize(("folder", "extras"), [("quadranas", []), ("tests", ["dev"])])
def test_every_import_is_declared(
    setup_cfg: RawConfigParser, folder: str, extras: list[str]
) -> None:
    runtimes = [name for name in setup_cfg["options.extras_require"] if name not in ("all", "dev")]
    accepted = declared(setup_cfg, *runtimes, *extras)
    undeclared = {
        name: str(file)
        for name, file in imported((ROOT / folder).rglob("*.py")).items()
        if name not in accepted
    }
    assert undeclared == {}


def test_all_is_every_runtime(setup_cfg: RawConfigParser) -> None:
    extras = setup_cfg["options.extras_require"]
    runtimes = set(extras) - {"all", "dev", "docs", "mlflow", "optuna", "parquet", "timm"}
    assert set(re.findall(r"quadranas\[(\w+)\]", extras["all"])) == runtimes
    assert "quadranas[all]" in extras["dev"]


def test_every_requirement_has_a_known_version(setup_cfg: RawConfigParser) -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {distribution(line) for line in lines if "==" in line}
    extras = [name for name in setup_cfg["options.extras_require"] if name != "timm"]
    needed = declared(setup_cfg, *extras) - {"quadranas"}
    assert needed - pinned == set()


def test_the_wheel_carries_spaces_tables_devices_and_recipes(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for folder in ("quadranas", "search_spaces", "latency_tables"):
        shutil.copytree(ROOT / folder, source / folder)
    for file in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    # Builds the source archive, then the wheel from it: both must be complete.
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", "out", str(source)]
    done = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

    (wheel,) = (tmp_path / "out").glob("*.whl")
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "installed")
    wanted = {
        f"{place}/{file.relative_to(ROOT / folder).as_posix()}"
        for folder, place in SHIPPED.items()
        for file in (ROOT / folder).rglob("*")
        if file.suffix in (".yaml", ".json")
    }
    assert wanted - names == set()
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"quadranas"}
    kinds = {Path(name).suffix for name in names if not name.startswith("quadranas-")}
    assert kinds == {".py", ".yaml", ".json", ".typed"}

    (source_archive,) = (tmp_path / "out").glob("*.tar.gz")
    with tarfile.open(source_archive) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "setup.cfg"} <= inside
    beside = {name.split("/")[0] for name in inside if "/" in name}
    assert beside == {"quadranas", "quadranas.egg-info", "search_spaces", "latency_tables"}

    code = "from quadranas.files import shipped; print(shipped('search_spaces'))"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == str(tmp_path / "installed/quadranas/search_spaces")


def test_git_ignores_what_commands_leave_in_a_checkout() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this is not a git checkout")
    host = table_paths("toy", "host")[0]
    left = [
        Path("runs/toy-cpu-1ms-1/config.yaml"),
        Path("comparison.html"),
        Path("data-pets.html"),
        RECORDS / "host" / "record.json",
        host,
        host.with_name(f"{host.name}{TIMINGS}"),
        host.with_name(f"{host.stem}{VALIDATION}.png"),
    ]
    shipped = [table_paths("toy", device)[0] for device in ("cpu", "gpu", "vpu")]
    done = subprocess.run(
        ["git", "check-ignore", "--no-index", "--stdin"],
        input="\n".join(map(str, [*left, *shipped])),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == list(map(str, left))
