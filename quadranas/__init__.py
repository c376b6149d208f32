"""Search, train and export QuadraNets under a latency budget. Importing this imports no torch."""

__version__ = "0.1.0"
