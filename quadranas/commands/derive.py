"""derive: decode a trained supernet again, for any device and budget."""

from functools import partial
from pathlib import Path

from quadranas.latency.budget import parse_budget
from quadranas.latency.contract import DEFAULT_TOLERANCE, Contract
from quadranas.latency.device import Device
from quadranas.network.modes import batch_norms
from quadranas.reporter import Reporter
from quadranas.runs import layout
from quadranas.runs.results import DeriveResult
from quadranas.runs.run_device import (
    open_device_argument,
)
from quadranas.runs.run_folder import RunFolder
from quadranas.strategies.derivation import (
    derive_architecture,
    judgement,
)
from quadranas.strategies.exact import decode_best
from quadranas.training.searched import Choice, Chosen, Request, open_searched


def derive(
    run: str | Path,
    *,
    device: str | Path | Device,
    budget: str,
    output: str | Path | None = None,
    table: str | Path | None = None,
    max_params: int | None = None,
    max_macs: int | None = None,
    confidence: float | None = None,
    tolerance: float = DEFAULT_TOLERANCE,
    candidates: int | None = None,
    allow_commands: bool = False,
    reporter: Reporter | None = None,
) -> DeriveResult:
    """Decode the best network of a trained supernet for a device and a budget.

    The network inherits its weights from the supernet; `quadranas train` on the output trains
    it further.

    Args:
        run: the folder of a search whose supernet is trained.
        device: a device's name, its YAML file, the folder of a run for the run's device, or a
            device already loaded; one that is not shipped is also written to the output.
        budget: latency budget, such as "30ms".
        output: a new folder; default: `RUN/derived/DEVICE-BUDGET`.
        table: latency table to use instead of the default one.
        max_params, max_macs: upper limits on the network.
        confidence: probability that the measured latency is within the budget.
        tolerance: allowed overshoot of the measured latency, as a fraction of the budget.
        candidates: number of networks that the gates prefer most, of which the one with the best
            accuracy on held-out images of the search is chosen; 1: the gates choose. Default: as
            in the search.
        allow_commands: run the commands of the device's file to measure the network.
        reporter: receives messages and progress. Default: nothing is shown.

    Raises:
        QuadranasError: no trained supernet, an infeasible budget, or an output that exists.
    """
    contract = Contract(budget_ms=parse_budget(budget), confidence=confidence, tolerance=tolerance)
    opened = open_device_argument(device)
    default = Path(run) / layout.DERIVED / f"{opened.name}-{''.join(budget.split())}"
    folder = Path(output) if output else default
    request = Request.of(
        *(device, contract, folder),
        table=table,
        max_params=max_params,
        max_macs=max_macs,
        allow_commands=allow_commands,
    )
    RunFolder(folder).refuse_content()
    searched = open_searched(Path(run))
    number = candidates or searched.config.candidates
    reporter = reporter or Reporter(quiet=True)
    return request.answer(searched, folder, reporter, partial(_choose, number), DeriveResult)


def _choose(number: int, choice: Choice) -> Chosen:
    """Decode the gates, and judge the networks that they prefer if the images are there."""
    searched, supernet = choice.searched, choice.supernet
    space, scores, table = searched.space, searched.scores, choice.table
    preferred = decode_best(space, scores, table, choice.limits, number)
    evaluator, missing = None, searched.missing_images
    if missing and number > 1:
        choice.reporter.message(
            f"the images of the search are no longer at {missing}; the gates alone choose"
        )
    elif not missing and (number > 1 or batch_norms(supernet)):
        evaluator = searched.evaluator(supernet)
    architecture = derive_architecture(
        *(space, scores, table, choice.contract, preferred),
        judge=evaluator.accuracy if evaluator and number > 1 else None,
    )
    if judgement(architecture):
        choice.reporter.message(judgement(architecture))
    if evaluator:
        evaluator.calibrate(space.choices_of(architecture))
    return Chosen(architecture)
