"""The forms of quadratic neurons, as data."""

from dataclasses import dataclass

from quadranas.errors import unknown


@dataclass(frozen=True, kw_only=True)
class Form:
    """One kind of neuron.

    Args:
        branches: which of the first-order branches it has.
        matrix: whether each output also has a full quadratic form over its inputs.
        equation: with `x` the inputs of a neuron (a patch, for a convolution).
        gains: variances of the branches' outputs, then of the matrix's, with which the layer's
            output has unit variance for independent normal inputs of unit variance.
    """

    branches: tuple[str, ...]
    matrix: bool = False
    equation: str
    gains: tuple[float, ...]

    def params_per_output(self, fan_in: int) -> int:
        """Weights of one neuron with `fan_in` inputs, biases not counted."""
        return len(self.branches) * fan_in + self.matrix * fan_in**2


QUADRATIC_SHARE = 1 / 256
"""Share of the second-order term in the output's variance at the start, beside a linear term.

With shares A and 1 - A the mean square q of a sample follows `q' = A q^2 + (1 - A) q` from layer
to layer: 1 is a fixed point, but an unstable one, so A must be small for a deep stack.
"""


FORMS = {
    "linear": Form(branches=("c",), equation="c(x)", gains=(1.0,)),
    "bilinear": Form(
        branches=("c",),
        matrix=True,
        equation="x^T W x + c(x)",
        gains=(1 - QUADRATIC_SHARE, QUADRATIC_SHARE),
    ),
    "pure_bilinear": Form(branches=(), matrix=True, equation="x^T W x", gains=(1.0,)),
    "input_square": Form(branches=("a",), equation="a(x^2)", gains=(1.0,)),
    # Var[u^2] = 2 Var[u]^2 for a normal u
    "output_square": Form(branches=("a",), equation="a(x)^2", gains=(2**-0.5,)),
    "product": Form(branches=("a", "b"), equation="a(x) * b(x)", gains=(1.0, 1.0)),
    "hadamard": Form(
        branches=("a", "b", "c"),
        equation="a(x) * b(x) + c(x)",
        gains=(QUADRATIC_SHARE**0.5, QUADRATIC_SHARE**0.5, 1 - QUADRATIC_SHARE),
    ),
}
"""The neurons of QuadraLib's comparison by their equations; `linear` is the first-order one."""


FACTORISED = frozenset(FORMS) - {"linear", "bilinear", "pure_bilinear"}
"""The second-order forms made of first-order branches alone."""


def find_form(name: str) -> Form:
    """A form by its name.

    Raises:
        QuadranasError: unknown; the nearest is suggested.
    """
    if name not in FORMS:
        raise unknown("form", name, FORMS)
    return FORMS[name]
