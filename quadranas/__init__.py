"""Search, train and export QuadraNets under a latency budget.

Every command of the command line is a function here, with the same name; they take keyword
arguments, return frozen, typed results and raise `QuadranasError`. Names are imported when they
are first used, so `import quadranas` imports neither torch nor pandas.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the types of what `__getattr__` imports
    from quadranas.commands.adapt import AdaptResult as AdaptResult
    from quadranas.commands.adapt import adapt as adapt
    from quadranas.commands.build_lut import BuildLutResult as BuildLutResult
    from quadranas.commands.build_lut import build_lut as build_lut
    from quadranas.commands.calibrate import CalibrateResult as CalibrateResult
    from quadranas.commands.calibrate import calibrate as calibrate
    from quadranas.commands.compare import CompareResult as CompareResult
    from quadranas.commands.compare import compare as compare
    from quadranas.commands.convert import ConvertResult as ConvertResult
    from quadranas.commands.convert import ReduceResult as ReduceResult
    from quadranas.commands.convert import convert as convert
    from quadranas.commands.data import DataResult as DataResult
    from quadranas.commands.data import describe_data as describe_data
    from quadranas.commands.derive import derive as derive
    from quadranas.commands.evaluate import EvaluateResult as EvaluateResult
    from quadranas.commands.evaluate import evaluate as evaluate
    from quadranas.commands.explore import ExploreResult as ExploreResult
    from quadranas.commands.explore import explore as explore
    from quadranas.commands.export import ExportResult as ExportResult
    from quadranas.commands.export import export as export
    from quadranas.commands.inspect import InspectResult as InspectResult
    from quadranas.commands.inspect import inspect as inspect
    from quadranas.commands.make_space import MakeSpaceResult as MakeSpaceResult
    from quadranas.commands.make_space import make_space as make_space
    from quadranas.commands.merge_lut import MergeLutResult as MergeLutResult
    from quadranas.commands.merge_lut import merge_lut as merge_lut
    from quadranas.commands.pareto import ParetoResult as ParetoResult
    from quadranas.commands.pareto import pareto as pareto
    from quadranas.commands.predict import PredictResult as PredictResult
    from quadranas.commands.predict import predict as predict
    from quadranas.commands.profile import MemoryResult as MemoryResult
    from quadranas.commands.profile import ProfileResult as ProfileResult
    from quadranas.commands.profile import profile as profile
    from quadranas.commands.publish import PublishResult as PublishResult
    from quadranas.commands.publish import publish as publish
    from quadranas.commands.recipes import RecipesResult as RecipesResult
    from quadranas.commands.recipes import recipes as recipes
    from quadranas.commands.report import ReportResult as ReportResult
    from quadranas.commands.report import report as report
    from quadranas.commands.run import RunResult as RunResult
    from quadranas.commands.run import run as run
    from quadranas.commands.search import search as search
    from quadranas.commands.space_from import SpaceFromResult as SpaceFromResult
    from quadranas.commands.space_from import space_from as space_from
    from quadranas.commands.time import TimeResult as TimeResult
    from quadranas.commands.time import time as time
    from quadranas.commands.train import train as train
    from quadranas.commands.validate_lut import ValidateLutResult as ValidateLutResult
    from quadranas.commands.validate_lut import validate_lut as validate_lut
    from quadranas.commands.write_probes import ProbesResult as ProbesResult
    from quadranas.commands.write_probes import write_probes as write_probes
    from quadranas.errors import PromiseMissedError as PromiseMissedError
    from quadranas.errors import QuadranasError as QuadranasError
    from quadranas.latency.device import Device as Device
    from quadranas.latency.device import load_device as load_device
    from quadranas.latency.table import LatencyTable as LatencyTable
    from quadranas.latency.table_files import load_table as load_table
    from quadranas.network.own_model import use_model as use_model
    from quadranas.network.published import create_model as create_model
    from quadranas.reporter import Reporter as Reporter
    from quadranas.runs.config import SearchConfig as SearchConfig
    from quadranas.runs.config import TrainConfig as TrainConfig
    from quadranas.runs.results import DeriveResult as DeriveResult
    from quadranas.runs.results import SearchResult as SearchResult
    from quadranas.runs.results import TrainResult as TrainResult
    from quadranas.runs.results import open_run as open_run
    from quadranas.runs.stored_network import from_pretrained as from_pretrained
    from quadranas.space.architecture import Architecture as Architecture
    from quadranas.space.architecture import load_architecture as load_architecture
    from quadranas.space.search_space import SearchSpace as SearchSpace
    from quadranas.space.space_file import load_space as load_space

__version__ = "0.1.0"

_HOMES = {
    "search": "quadranas.commands.search",
    "derive": "quadranas.commands.derive",
    "explore": "quadranas.commands.explore",
    "pareto": "quadranas.commands.pareto",
    "train": "quadranas.commands.train",
    "evaluate": "quadranas.commands.evaluate",
    "export": "quadranas.commands.export",
    "run": "quadranas.commands.run",
    "compare": "quadranas.commands.compare",
    "publish": "quadranas.commands.publish",
    "report": "quadranas.commands.report",
    "build_lut": "quadranas.commands.build_lut",
    "calibrate": "quadranas.commands.calibrate",
    "write_probes": "quadranas.commands.write_probes",
    "time": "quadranas.commands.time",
    "TimeResult": "quadranas.commands.time",
    "ProbesResult": "quadranas.commands.write_probes",
    "validate_lut": "quadranas.commands.validate_lut",
    "merge_lut": "quadranas.commands.merge_lut",
    "predict": "quadranas.commands.predict",
    "profile": "quadranas.commands.profile",
    "convert": "quadranas.commands.convert",
    "adapt": "quadranas.commands.adapt",
    "space_from": "quadranas.commands.space_from",
    "make_space": "quadranas.commands.make_space",
    "use_model": "quadranas.network.own_model",
    "inspect": "quadranas.commands.inspect",
    "describe_data": "quadranas.commands.data",
    "recipes": "quadranas.commands.recipes",
    "open_run": "quadranas.runs.results",
    "from_pretrained": "quadranas.runs.stored_network",
    "load_space": "quadranas.space.space_file",
    "load_device": "quadranas.latency.device",
    "load_architecture": "quadranas.space.architecture",
    "load_table": "quadranas.latency.table_files",
    "create_model": "quadranas.network.published",
    "Reporter": "quadranas.reporter",
    "Device": "quadranas.latency.device",
    "Architecture": "quadranas.space.architecture",
    "SearchSpace": "quadranas.space.search_space",
    "LatencyTable": "quadranas.latency.table",
    "SearchConfig": "quadranas.runs.config",
    "TrainConfig": "quadranas.runs.config",
    "SearchResult": "quadranas.runs.results",
    "DeriveResult": "quadranas.runs.results",
    "ExploreResult": "quadranas.commands.explore",
    "ParetoResult": "quadranas.commands.pareto",
    "TrainResult": "quadranas.runs.results",
    "EvaluateResult": "quadranas.commands.evaluate",
    "ReportResult": "quadranas.commands.report",
    "ConvertResult": "quadranas.commands.convert",
    "ReduceResult": "quadranas.commands.convert",
    "AdaptResult": "quadranas.commands.adapt",
    "SpaceFromResult": "quadranas.commands.space_from",
    "MakeSpaceResult": "quadranas.commands.make_space",
    "InspectResult": "quadranas.commands.inspect",
    "DataResult": "quadranas.commands.data",
    "RecipesResult": "quadranas.commands.recipes",
    "ProfileResult": "quadranas.commands.profile",
    "MemoryResult": "quadranas.commands.profile",
    "ExportResult": "quadranas.commands.export",
    "RunResult": "quadranas.commands.run",
    "CompareResult": "quadranas.commands.compare",
    "PublishResult": "quadranas.commands.publish",
    "BuildLutResult": "quadranas.commands.build_lut",
    "CalibrateResult": "quadranas.commands.calibrate",
    "ValidateLutResult": "quadranas.commands.validate_lut",
    "MergeLutResult": "quadranas.commands.merge_lut",
    "PredictResult": "quadranas.commands.predict",
    "QuadranasError": "quadranas.errors",
    "PromiseMissedError": "quadranas.errors",
}
"""Every public name and the module that defines it."""

__all__ = ["__version__", *_HOMES]


if not TYPE_CHECKING:  # it would make every misspelt name an `Any`

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'quadranas' has no attribute {name!r}")
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
