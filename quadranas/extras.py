"""Checking for optional packages, which extras install."""

import importlib

from quadranas.errors import MissingExtraError


def require_extra(extra: str, *packages: str) -> None:
    """Check that the packages of an extra are installed.

    Raises:
        MissingExtraError: a package is missing; names the extra.
    """
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise MissingExtraError(
                f"{extra!r} needs the package {package!r}",
                f"Install it with: pip install 'quadranas[{extra}]'",
            ) from error
