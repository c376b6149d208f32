"""Figures that are drawn but not rendered, which takes nearly all of the time of a report."""

from typing import Any

from matplotlib.figure import Figure


class Unrendered(Figure):
    """Everything is drawn into it as usual; as SVG it is empty."""

    def savefig(self, fname: Any, **options: Any) -> None:
        if options.get("format") == "svg":
            fname.write("<defs></defs></svg>")
        else:
            super().savefig(fname, **options)
