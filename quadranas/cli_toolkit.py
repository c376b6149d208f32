"""The commands of the quadratic toolkit."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from quadranas.cli_options import Json, Run, Weights
from quadranas.console import print_result


def inspect(
    run: Run,
    image: Annotated[Path, typer.Option("--image", help="What the terms are shown on.")],
    output: Annotated[
        Path | None, typer.Option(help="Page; default: inspection.html in the run folder.")
    ] = None,
    weights: Weights = None,
    as_json: Json = False,
) -> None:
    """Show what the quadratic layers of a trained network do: one self-contained HTML page."""
    from quadranas.inspect_run import inspect_run
    from quadranas.trained import open_subject

    subject = open_subject(str(run), weights)
    result = inspect_run(subject, image, output or run / "inspection.html")
    shares = [layer["second_order_share"] for layer in result["layers"]]
    known = [share for share in shares if share is not None]
    line = f"{result['page']}: {len(shares)} quadratic layers"
    if known:
        line += f"; share of the second-order term from {min(known):.1%} to {max(known):.1%}"
    print_result(result, as_json, line)


COMMANDS: dict[str, Callable[..., None]] = {"inspect": inspect}
"""The commands of this file by name."""
