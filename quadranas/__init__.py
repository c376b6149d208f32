"""Search, train and export QuadraNets under a latency budget.

Every command of the command line is a function here, with the same name; they take keyword
arguments, return frozen, typed results and raise `QuadranasError`. Names are imported when they
are first used, so `import quadranas` imports neither torch nor pandas.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "search": "quadranas.commands.search",
    "derive": "quadranas.commands.derive",
    "train": "quadranas.commands.train",
    "evaluate": "quadranas.commands.evaluate",
    "export": "quadranas.commands.export",
    "run": "quadranas.commands.run",
    "report": "quadranas.commands.report",
    "build_lut": "quadranas.commands.build_lut",
    "validate_lut": "quadranas.commands.validate_lut",
    "merge_lut": "quadranas.commands.merge_lut",
    "predict": "quadranas.commands.predict",
    "profile": "quadranas.commands.profile",
    "convert": "quadranas.commands.convert",
    "adapt": "quadranas.commands.adapt",
    "inspect": "quadranas.commands.inspect",
    "open_run": "quadranas.runs.results",
    "load_space": "quadranas.space.space_file",
    "load_device": "quadranas.latency.device",
    "load_architecture": "quadranas.space.architecture",
    "load_table": "quadranas.latency.table_files",
    "create_model": "quadranas.network.published",
    "SearchConfig": "quadranas.runs.config",
    "TrainConfig": "quadranas.runs.config",
    "SearchResult": "quadranas.runs.results",
    "DeriveResult": "quadranas.runs.results",
    "TrainResult": "quadranas.runs.results",
    "EvaluateResult": "quadranas.commands.evaluate",
    "ReportResult": "quadranas.commands.report",
    "ConvertResult": "quadranas.commands.convert",
    "ReduceResult": "quadranas.commands.convert",
    "AdaptResult": "quadranas.commands.adapt",
    "InspectResult": "quadranas.commands.inspect",
    "ProfileResult": "quadranas.commands.profile",
    "MemoryResult": "quadranas.commands.profile",
    "ExportResult": "quadranas.commands.export",
    "RunResult": "quadranas.commands.run",
    "QuadranasError": "quadranas.errors",
    "BuildLutResult": "quadranas.commands.build_lut",
    "ValidateLutResult": "quadranas.commands.validate_lut",
    "MergeLutResult": "quadranas.commands.merge_lut",
    "PredictResult": "quadranas.commands.predict",
}
"""Every public name and the module that defines it."""

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'quadranas' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
