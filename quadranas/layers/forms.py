"""The forms of quadratic neurons, as plain data."""

from dataclasses import dataclass

from quadranas.errors import unknown


@dataclass(frozen=True, kw_only=True)
class Form:
    """One kind of neuron.

    Args:
        branches: names of its first-order branches.
        matrix: whether each output also has a full quadratic form of its inputs.
        equation: the neuron's equation, with `x` its inputs (in a convolution, a patch).
        gains: variances of the branches' outputs, then of the matrix term, for which the layer's
            output has unit variance, given independent normal inputs of unit variance.
    """

    branches: tuple[str, ...]
    matrix: bool = False
    equation: str
    gains: tuple[float, ...]

    def params_per_output(self, fan_in: int) -> int:
        """The number of weights of one neuron with `fan_in` inputs, without biases."""
        return len(self.branches) * fan_in + self.matrix * fan_in**2


QUADRATIC_SHARE = 1 / 256
"""Fraction of the output's initial variance due to the second-order term, next to a linear term.

With fractions A and 1 - A the mean square q of a sample follows `q' = A q^2 + (1 - A) q` from
layer to layer: 1 is an unstable fixed point, so A must be small for a deep stack.
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
"""The neurons compared in QuadraLib, by name; `linear` is the first-order neuron."""


FACTORISED = frozenset(FORMS) - {"linear", "bilinear", "pure_bilinear"}
"""The second-order forms without a matrix, made of first-order branches alone."""


def find_form(name: str) -> Form:
    """Find a form by its name.

    Raises:
        QuadranasError: unknown name; the nearest is suggested.
    """
    if name not in FORMS:
        raise unknown("form", name, FORMS)
    return FORMS[name]
