"""derive: decode a trained supernet again, for any device and budget."""

from functools import partial
from pathlib import Path
from typing import Any

from quadranas.latency.device import Device
from quadranas.network.modes import batch_norms
from quadranas.reporter import Reporter
from quadranas.runs import layout
from quadranas.runs.results import DeriveResult
from quadranas.strategies.derivation import (
    check_candidates,
    decode_candidates,
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
    candidates: int | None = None,
    allow_commands: bool = False,
    reporter: Reporter | None = None,
    **limits: Any,
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
        candidates: number of networks that the gates prefer most, of which the one with the best
            accuracy on held-out images of the search is chosen; 1: the gates choose. Default: as
            in the search, or all networks within the limits if they are fewer.
        allow_commands: run the commands of the device's file to measure the network.
        reporter: receives messages and progress. Default: nothing is shown.
        limits: keys of `LimitsConfig`, such as `also=["vpu=30ms"]` and `max_params`.

    Raises:
        QuadranasError: no trained supernet, infeasible limits, fewer networks than candidates, or
            an output that exists.
    """
    request = Request.of(
        *(device, budget, limits, lambda name: Path(run) / layout.DERIVED / name, output),
        table=table,
        allow_commands=allow_commands,
    )
    searched = open_searched(Path(run))
    if candidates is not None:
        check_candidates(searched.space, candidates)
    reporter = reporter or Reporter(quiet=True)
    return request.answer(searched, reporter, partial(_choose, candidates), DeriveResult)


def _choose(candidates: int | None, choice: Choice) -> Chosen:
    """Decode the gates, and judge the networks that they prefer if the images are there."""
    searched, supernet = choice.searched, choice.supernet
    space, scores, table = searched.space, searched.scores, choice.table
    number = candidates or searched.config.candidates
    decoded = decode_best if candidates is None else decode_candidates
    preferred = decoded(space, scores, table, choice.limits, number)
    evaluator, missing = None, searched.missing_images
    if missing and number > 1:
        choice.reporter.message(
            f"the images of the search are no longer at {missing}; the gates alone choose"
        )
    elif not missing and (number > 1 or batch_norms(supernet)):
        evaluator = searched.evaluator(supernet)
    architecture = derive_architecture(
        *(space, scores, choice.goals, preferred),
        judge_all=evaluator.accuracies if evaluator and number > 1 else None,
    )
    if judgement(architecture):
        choice.reporter.message(judgement(architecture))
    if evaluator:
        evaluator.calibrate(space.choices_of(architecture))
    return Chosen(architecture)
