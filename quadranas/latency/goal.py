"""The latency that a network has to keep on one of its devices."""

from dataclasses import dataclass

from quadranas.latency.contract import Contract
from quadranas.latency.device import Device
from quadranas.latency.table import LatencyTable
from quadranas.latency.table_files import PricedTable


@dataclass(frozen=True)
class Goal:
    """A device with its latency table, and the contract of the budget on it."""

    device: Device
    priced: PricedTable
    contract: Contract

    @property
    def table(self) -> LatencyTable:
        """The latency table."""
        return self.priced.table

    @property
    def name(self) -> str:
        """Name of the device."""
        return self.priced.table.header.device

    @property
    def decoding_ms(self) -> float:
        """The budget for predictions; errors as `Contract.decoding_ms`."""
        return self.contract.decoding_ms(self.table)
