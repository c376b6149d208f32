"""Path gates: draws against exact probabilities, gradients against the closed form."""

import itertools
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from quadranas.space.search_space import SKIPPED
from quadranas.space.space_file import load_space
from quadranas.supernet.gates import INIT_STD, KEEP, SKIP, GateInfo, Gates, Sample, gate_infos
from tests.supernet.toy import generator

ALPHAS = ((0.4, -0.9), (1.2, 0.0, -0.7), (0.0, 2.0, -1.0, 0.5))
"""Gates of two, three and four candidates."""


def gates_of(alphas: tuple[tuple[float, ...], ...], copies: int = 1) -> Gates:
    """Gates with given parameters, each of them `copies` times in a row."""
    rows = [row for row in alphas for _ in range(copies)]
    infos = [
        GateInfo("block", index, tuple(map(str, range(len(row)))))
        for index, row in enumerate(rows)
    ]
    gates = Gates(infos, generator())
    with torch.no_grad():
        for place, row in zip(gates.alpha, rows, strict=True):
            place[: len(row)] = torch.tensor(row, dtype=torch.float64)
    return gates


def softmax(row: Sequence[float]) -> list[float]:
    total = sum(map(math.exp, row))
    return [math.exp(value) / total for value in row]


def assert_frequencies(counts: list[int], probabilities: list[float]) -> None:
    """Counts are multinomial with these probabilities, unless a one in ten thousand case."""
    assert sum(probabilities) == pytest.approx(1, abs=1e-12)
    expected = [sum(counts) * p for p in probabilities]
    assert stats.chisquare(counts, expected).pvalue > 1e-4


# ---------------------------------------------------------------- the gates of a space


def test_gates_of_a_space() -> None:
    infos = gate_infos(load_space("toy"))
    slots = ["stage1_block1.slot0", "stage1_block1.slot1"]
    optional = ["stage1_block2.depth", "stage1_block2.slot0", "stage1_block2.slot1"]
    names = slots + optional
    names += [name.replace("stage1", "stage2") for name in names]
    assert [info.name for info in infos] == names
    assert infos[0].candidates == (
        "quadratic_depthwise 8->8 r8 k3",
        "quadratic_depthwise 8->8 r8 k5",
    )
    assert infos[2].candidates == ("keep", "skip")


def test_a_slot_with_one_candidate_has_no_gate() -> None:
    # Stem, first block and last convolution of ProxylessNAS's space are given.
    blocks = {info.block for info in gate_infos(load_space("mbconv-mobile"))}
    assert not blocks & {"stem_block1", "stage1_block1", "last_block1", "head"}


def test_initial_parameters() -> None:
    infos = [GateInfo("block", index, ("a", "b", "c")[: 2 + index % 2]) for index in range(2000)]
    gates = Gates(infos, generator())
    assert gates.alpha.dtype == torch.float64
    values = gates.alpha[gates.mask].detach() / INIT_STD
    assert values.numel() == 5000
    assert stats.kstest(values.numpy(), "norm").pvalue > 1e-3
    assert not gates.alpha[~gates.mask].any()
    assert torch.equal(gates.alpha, Gates(infos, generator()).alpha)
    assert not torch.equal(gates.alpha, Gates(infos, generator(1)).alpha)


# ---------------------------------------------------------------- what is drawn


@pytest.mark.parametrize("alphas", ALPHAS)
def test_a_path_is_drawn_from_the_softmax(alphas: tuple[float, ...]) -> None:
    draws = gates_of((alphas,), copies=20_000).sample_path(generator())
    counts = torch.bincount(draws.active, minlength=len(alphas)).tolist()
    assert_frequencies(counts, softmax(alphas))
    only_active = torch.nn.functional.one_hot(draws.active, len(alphas)).bool()
    assert torch.equal(draws.involved, only_active)


@pytest.mark.parametrize("alphas", ALPHAS)
def test_a_full_sample_is_drawn_from_the_softmax_and_involves_all(
    alphas: tuple[float, ...],
) -> None:
    draws = gates_of((alphas,), copies=20_000).sample_full(generator())
    counts = torch.bincount(draws.active, minlength=len(alphas)).tolist()
    assert_frequencies(counts, softmax(alphas))
    assert draws.involved.all()


@pytest.mark.parametrize("alphas", ALPHAS)
def test_a_pair_is_drawn_without_replacement_and_its_softmax_decides(
    alphas: tuple[float, ...],
) -> None:
    draws = gates_of((alphas,), copies=40_000).sample_pair(generator())
    assert (draws.involved.sum(1) == 2).all()
    assert draws.involved.gather(1, draws.active[:, None]).all()
    p = softmax(alphas)
    counts, probabilities = [], []
    for i, j in itertools.combinations(range(len(p)), 2):
        is_pair = draws.involved[:, i] & draws.involved[:, j]
        pair = p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j])  # i first, or j first
        for active in (i, j):
            counts.append(int((is_pair & (draws.active == active)).sum()))
            probabilities.append(pair * p[active] / (p[i] + p[j]))
    assert_frequencies(counts, probabilities)


def test_gates_are_drawn_independently() -> None:
    gates = gates_of((ALPHAS[1],), copies=40_000)
    active = gates.sample_pair(generator()).active
    counts = torch.bincount(3 * active[::2] + active[1::2], minlength=9)
    assert stats.chi2_contingency(counts.reshape(3, 3)).pvalue > 1e-3


@pytest.mark.parametrize("method", ["sample_path", "sample_pair", "sample_full"])
def test_a_sample_is_a_function_of_its_generator(method: str) -> None:
    gates = gates_of(ALPHAS, copies=50)
    before = torch.get_rng_state()
    first, same, other = (getattr(gates, method)(generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.active, same.active)
    assert torch.equal(first.involved, same.involved)
    assert not torch.equal(first.active, other.active)


@pytest.mark.parametrize("method", ["sample_path", "sample_pair", "sample_full"])
def test_padding_is_never_drawn(method: str) -> None:
    gates = gates_of(((-9.0, -9.0), (0.0, 0.0, 0.0, 0.0)), copies=1000)
    sample = getattr(gates, method)(generator())
    assert not (sample.involved & ~gates.mask).any()
    assert sample.active[:1000].max() == 1


# ---------------------------------------------------------------- gradients


def rows(width: int) -> st.SearchStrategy[list[float]]:
    return st.lists(st.floats(-5, 5), min_size=width, max_size=width)


@given(alpha=rows(4), paths=rows(4), involved=st.sets(st.integers(0, 3)))
def test_task_gradient_is_the_double_sum(
    alpha: list[float], paths: list[float], involved: set[int]
) -> None:
    gates = gates_of((tuple(alpha),))
    is_involved = torch.tensor([[index in involved for index in range(4)]])
    found = gates.task_gradient(torch.tensor([paths], dtype=torch.float64), is_involved)

    share = {i: math.exp(alpha[i]) / sum(math.exp(alpha[j]) for j in involved) for i in involved}
    expected = [0.0] * 4
    for i in involved:
        for j in involved:
            expected[i] += paths[j] * share[j] * ((i == j) - share[i])
    assert found.tolist() == [pytest.approx(expected, rel=1e-9, abs=1e-12)]


def test_probabilities_are_the_softmax() -> None:
    gates = gates_of(ALPHAS)
    for row, found in zip(ALPHAS, gates.probabilities().tolist(), strict=True):
        assert found == pytest.approx(softmax(row) + [0.0] * (4 - len(row)))


def test_probabilities_within_a_pair_have_the_same_values_and_move_along_the_pair() -> None:
    gates = gates_of(ALPHAS)
    pairs = torch.zeros_like(gates.mask)
    chosen = [(0, 1), (0, 2), (3, 1)]
    for row, pair in enumerate(chosen):
        pairs[row, list(pair)] = True
    plain = gates.probabilities().detach()
    prices = torch.randn(plain.shape, generator=generator(), dtype=torch.float64)
    within = gates.probabilities(pairs)
    torch.testing.assert_close(within.detach(), plain, rtol=1e-14, atol=0)
    (gradient,) = torch.autograd.grad((within * prices).sum(), gates.alpha)
    for row, pair in enumerate(chosen):
        p = plain[row]
        mass = float(p[list(pair)].sum())
        expected = [0.0] * 4
        for i, j in (pair, pair[::-1]):  # p_i = mass * sigmoid(alpha_i - alpha_j)
            expected[i] = (
                mass * float(p[i] * p[j]) / mass**2 * float(prices[row, i] - prices[row, j])
            )
        assert gradient[row].tolist() == pytest.approx(expected, rel=1e-12)


def test_the_shift_of_a_pair_leaves_all_other_probabilities_as_they_were() -> None:
    gates = gates_of(ALPHAS, copies=100)
    sample = gates.sample_pair(generator())
    before, old = gates.alpha.detach().clone(), gates.probabilities().detach()
    moves = torch.randn(before.shape, generator=generator(), dtype=torch.float64)
    with torch.no_grad():
        gates.alpha.add_(torch.where(sample.involved, moves, 0.0))
    unshifted = gates.probabilities().detach()
    gates.keep_mass(before, sample.involved)
    new = gates.probabilities().detach()
    others = gates.mask & ~sample.involved
    assert torch.equal(gates.alpha[~sample.involved], before[~sample.involved])
    torch.testing.assert_close(new[others], old[others], rtol=4e-15, atol=0)
    assert (unshifted[others] - old[others]).abs().max() > 0.01
    assert (new[sample.involved] - old[sample.involved]).abs().min() > 1e-6
    # Within the pair, the step itself is kept: the ratio is the optimiser's.
    torch.testing.assert_close(
        (new / unshifted)[sample.involved].reshape(-1, 2).diff(), torch.zeros(300, 1).double()
    )


# ---------------------------------------------------------------- figures of the gates


def test_entropy_is_one_for_uniform_and_zero_for_decided_gates() -> None:
    assert gates_of(((0.0, 0.0), (3.0, 3.0, 3.0))).entropy() == pytest.approx(1)
    assert gates_of(((0.0, 0.0), (0.0, 99.0, 0.0))).entropy() == pytest.approx(0.5)
    p = softmax(ALPHAS[1])
    expected = -sum(v * math.log(v) for v in p) / math.log(3)
    assert gates_of((ALPHAS[1],)).entropy() == pytest.approx(expected)


def test_skip_rate_is_the_mean_over_optional_blocks() -> None:
    infos = (
        GateInfo("a", None, ("keep", "skip")),
        GateInfo("a", 0, ("x", "y")),
        GateInfo("b", None, ("keep", "skip")),
    )
    gates = Gates(infos, generator())
    with torch.no_grad():
        gates.alpha[:] = torch.tensor([[0.0, 0.0], [9.0, -9.0], [0.0, math.log(3)]])
    assert gates.skip_rate() == pytest.approx((0.5 + 0.75) / 2)
    assert gates_of(ALPHAS).skip_rate() == 0.0
    assert (infos[0].candidates[KEEP], infos[0].candidates[SKIP]) == ("keep", "skip")


def test_scores_are_the_logarithms_of_what_is_drawn() -> None:
    space = load_space("toy")
    gates = Gates(gate_infos(space), generator())
    with torch.no_grad():
        gates.alpha.normal_(generator=generator())
    scores = gates.scores(space)
    assert set(scores.blocks) == {block.name for block in space.blocks if not block.is_fixed}
    options = [
        [SKIPPED] * block.optional
        + list(itertools.product(*(range(len(slot.candidates)) for slot in block.slots)))
        for block in space.blocks
    ]
    names = [block.name for block in space.blocks]
    total = sum(
        math.exp(scores.log_probability(dict(zip(names, choice, strict=True))))
        for choice in itertools.product(*options)
    )
    assert total == pytest.approx(1)
    row = gates.alpha[2].tolist()  # the depth gate of stage1_block2
    assert scores.blocks["stage1_block2"].skip == pytest.approx(math.log(softmax(row)[SKIP]))


def test_no_gates_at_all() -> None:
    gates = Gates((), generator())
    for sample in (gates.sample_path, gates.sample_pair, gates.sample_full):
        drawn = sample(generator())
        assert isinstance(drawn, Sample)
        assert drawn.active.numel() == 0
    assert gates.entropy() == gates.skip_rate() == 0.0
