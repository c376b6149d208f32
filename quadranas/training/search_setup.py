"""The setup of a search: space, budget, table and data, checked before any training."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from quadranas.conversion.pretrained_network import PretrainedNetwork
from quadranas.conversion.quadratic_bottlenecks import made_quadratic
from quadranas.data.augmentation import Augmenter
from quadranas.data.dataset import Dataset
from quadranas.data.description import report_data
from quadranas.data.identity import EarlierData
from quadranas.errors import QuadranasError
from quadranas.latency.budget import parse_budget
from quadranas.latency.contract import Contract
from quadranas.latency.device import Device, load_device
from quadranas.latency.goal import Goal
from quadranas.latency.table import LatencyTable, build_command
from quadranas.latency.table_files import (
    PricedTable,
    check_conditions,
    find_priced,
    load_table,
)
from quadranas.network.own_model import check_own_resolution
from quadranas.reporter import Reporter
from quadranas.runs import layout
from quadranas.runs.config import (
    DEFAULT_CANDIDATES,
    SearchConfig,
    count_classes,
    list_data,
    open_data,
)
from quadranas.runs.config_file import OWN_INIT
from quadranas.runs.recipe import check_recipe, resolve_config
from quadranas.runs.run_device import further_folder
from quadranas.space.matching import match_stages, stage_widths
from quadranas.space.own_space_file import OwnSpaceFile
from quadranas.space.search_space import SearchSpace
from quadranas.space.space_file import (
    AnySpaceFile,
    build_space,
    load_space_file,
    load_whole_space_file,
)
from quadranas.strategies.derivation import check_limits, decoding_limits
from quadranas.strategies.limits import Limits, feasibility
from quadranas.training.further_goals import all_goals
from quadranas.training.held_out import hold_out
from quadranas.training.initial_weights import InitialWeights


@dataclass(frozen=True)
class SearchSetup:
    """Space, devices, budgets, tables and data of a search.

    Args:
        goals: devices with their tables and budgets, the main device first.
        initial: the weights that it starts from; None for random ones.
    """

    config: SearchConfig
    space_file: AnySpaceFile
    space: SearchSpace
    goals: tuple[Goal, ...]
    limits: Limits
    dataset: Dataset
    initial: InitialWeights | None = None

    @property
    def table(self) -> LatencyTable:
        """The latency table of the main device."""
        return self.goals[0].table

    @property
    def budget_ms(self) -> float:
        """The budget for predictions, in milliseconds."""
        return self.limits.budget_ms

    def augmenter(self) -> Augmenter:
        """The configured augmentation for the data's classes and colours."""
        return Augmenter.of(self.dataset, self.config.augment)


def prepare_search(
    given: SearchConfig,
    reporter: Reporter,
    copies: Path | None = None,
    earlier: EarlierData | None = None,
    *,
    is_device_named: bool = True,
    are_further_named: bool = True,
    pretrained: PretrainedNetwork | None = None,
    allow_commands: bool = False,
) -> SearchSetup:
    """Check everything that can be checked before training, cheapest first.

    Args:
        copies: when resuming, the folder of the run: its copies of space and table are used, even
            if the originals have changed since.
        earlier: when resuming, the images of the run.
        is_device_named, are_further_named: whether the caller named the main device, and the
            further ones; when resuming, they may be known from the run folder only.
        pretrained: the network to start from; None to start from scratch.
        allow_commands: whether the commands of the devices may run.

    Raises:
        QuadranasError: the configuration, budget, table or images are invalid or missing.
    """
    name, budget = _required(given)
    check_recipe(given)
    contract, options = given.contract(parse_budget(budget)), f"--device {shlex.quote(name)}"
    device = _opened(name, options, is_named=is_device_named, allow_commands=allow_commands)
    copy = _copy(copies, layout.SPACE)
    space_file = load_whole_space_file(copy) if copy else load_space_file(given.space)
    listing = list_data(given)
    if isinstance(space_file, OwnSpaceFile):
        _check_own(given)
    pretrained = _fitting(given, build_space(space_file), pretrained)
    space = build_space(space_file).with_num_classes(count_classes(listing))
    about = (device, contract, space, given, copies)
    goals = _goals(*about, are_named=are_further_named, allow_commands=allow_commands)
    reporter.message(feasibility(space, goals))
    limits = decoding_limits(goals, **given.ceilings)
    is_new = copies is None and given.candidates > DEFAULT_CANDIDATES
    check_limits(space, goals[0].table, limits, given.candidates if is_new else 1)
    if "train_resolution" in given.model_fields_set:
        _check_train_resolution(space, given.train_resolution)
    dataset = open_data(given, space.resolution, listing, earlier)
    _check_train_resolution(space, dataset.resolution)
    report_data(dataset, reporter, skips_corrupt=given.skip_corrupt)
    config, dataset, initial = _resolved(given, space, dataset, pretrained)
    dataset = hold_out(dataset, config, reporter)
    return SearchSetup(config, space_file, space, goals, limits, dataset, initial)


def _resolved(
    given: SearchConfig,
    space: SearchSpace,
    dataset: Dataset,
    pretrained: PretrainedNetwork | None,
) -> tuple[SearchConfig, Dataset, InitialWeights | None]:
    """The configuration for the images, these as the pre-trained network expects them, and it."""
    initial = None
    if pretrained is not None:
        dataset = pretrained.prepared(dataset)
        initial = InitialWeights.of(pretrained, space, dataset)
    return resolve_config(given, dataset), dataset, initial


def _required(given: SearchConfig) -> tuple[str, str]:
    """The device and the budget as they were given.

    Raises:
        QuadranasError: one of them is missing.
    """
    if given.budget is None or given.device is None:
        missing = "device" if given.device is None else "budget"
        raise QuadranasError(f"missing {missing}", f"Name one with --{missing}.")
    return given.device, given.budget


def _opened(argument: str, options: str, *, is_named: bool, allow_commands: bool) -> Device:
    """A device that the caller named, or only a run folder; arguments as for `_refuse_reach`."""
    device = load_device(argument, allow_commands=allow_commands)
    if not is_named:
        _refuse_reach(device, argument, options)
    return device


def _goals(
    device: Device,
    contract: Contract,
    space: SearchSpace,
    given: SearchConfig,
    copies: Path | None,
    *,
    are_named: bool,
    allow_commands: bool,
) -> tuple[Goal, ...]:
    """The goals on all devices; see `all_goals`, and `prepare_search` for the arguments."""

    def opened(argument: str) -> Device:
        also = " ".join(f"--also {shlex.quote(entry)}" for entry in given.also)
        return _opened(argument, also, is_named=are_named, allow_commands=allow_commands)

    def priced(device: Device, argument: str) -> PricedTable:
        table = None if copies is None else further_folder(copies, device.name) / layout.TABLE
        if table is not None and not table.is_file():
            table = None
        command = build_command(given.space, argument)
        return _priced(space, device, table, copies, command)

    table = _copy(copies, layout.TABLE) or (Path(given.table) if given.table else None)
    command = build_command(given.space, given.device or device.name)
    main = Goal(device, _priced(space, device, table, copies, command), contract)
    return all_goals(main, given, opened, priced)


def _priced(
    space: SearchSpace, device: Device, table: Path | None, copies: Path | None, command: str
) -> PricedTable:
    """The table of the search.

    Raises:
        QuadranasError: none, or one that was made for something else.
    """
    if copies is not None and table is not None and table.is_relative_to(copies):
        check_conditions(
            load_table(table).header,
            device,
            table,
            hint="Restore the device's file, or start a new run with another --output.",
        )
    return find_priced(space, device, table, command=command)


def _refuse_reach(device: Device, argument: str, options: str) -> None:
    """Refuse a device that only a run folder names, if something is started or contacted for it.

    Args:
        options: those that name the device again.

    Raises:
        QuadranasError: the device has `reach` or options of execution providers, or its commands
            may run.
    """
    others = {"command": device.allows_commands, "target": device.has_provider_options}
    through = " and ".join(
        (*device.reach.given, *(key for key, is_used in others.items() if is_used))
    )
    if through:
        raise QuadranasError(
            f"the run's device {argument!r} is reached through {through}, and a run folder never "
            "chooses what is started or contacted",
            f"Name the device again: {options}",
        )


def _fitting(
    config: SearchConfig, space: SearchSpace, pretrained: PretrainedNetwork | None
) -> PretrainedNetwork | None:
    """The network to start from, quadratic where the space is.

    Raises:
        QuadranasError: the network has another shape, or stages to freeze are random or do not
            exist; says what does not fit, or how many stages there can be.
    """
    if pretrained is not None:
        pretrained = made_quadratic(pretrained, space)
        if space.model is None:
            match_stages(space, pretrained.architecture, pretrained.source)
    frozen, number = config.pretrained.frozen_stages, len(stage_widths(space.blocks))
    if frozen and pretrained is None:
        raise QuadranasError(
            f"pretrained.frozen_stages {frozen} needs a pre-trained network",
            "Name one with --init, or leave the key out.",
        )
    if frozen > number:
        raise QuadranasError(
            f"pretrained.frozen_stages is {frozen}; space {space.name} has {number} stages",
            f"Set it to at most {number}.",
        )
    return pretrained


def _check_own(config: SearchConfig) -> None:
    """Refuse keys that a user's own model has no meaning for.

    Raises:
        QuadranasError: names the key.
    """
    for name, is_set in (
        (f"init {config.init}", config.init not in (None, OWN_INIT)),
        ("pretrained.frozen_stages", config.pretrained.frozen_stages > 0),
        ("weights.drop_path", config.weights.drop_path > 0),
        ("checkpointing", config.checkpointing),
    ):
        if is_set:
            raise QuadranasError(
                f"{name} is not for the space of your own model",
                "Omit it. The search starts from the weights that the model has; if they are "
                f"trained, name it with --init {OWN_INIT}.",
            )


def _copy(folder: Path | None, name: str) -> Path | None:
    """A file of a run folder, if it exists."""
    return folder / name if folder is not None and (folder / name).is_file() else None


def _check_train_resolution(space: SearchSpace, resolution: int) -> None:
    """Refuse a training resolution that the space's strides, or a user's model, do not take."""
    if space.model is not None:
        check_own_resolution(space.model, resolution, space.num_classes)
        return
    space.extreme(lambda spec: spec.in_channels, largest=False).adapted(resolution=resolution)
