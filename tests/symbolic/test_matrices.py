"""Matrix forms of polynomials, as NumPy code and as explicit matrices."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
import sympy as sp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quadmodel.symbolic.algebra import matrices, names
from quadmodel.symbolic.algebra.gaussian import CURVATURE
from quadmodel.symbolic.algebra.indices import (
    DATA,
    PARAMETERS,
    Index,
    data_indices,
    parameter_indices,
)
from quadmodel.symbolic.algebra.matrices import as_matrix, matrix_of
from quadmodel.symbolic.algebra.polynomials import Tensor, constant, delta
from tests.symbolic._exact import refused

A = Tensor("A", (DATA, DATA))
M = Tensor("M", (DATA, DATA), (0, 0))
J, G = Tensor("J", (DATA, PARAMETERS)), Tensor("G", (DATA, PARAMETERS))
R = Tensor("R", (PARAMETERS, PARAMETERS))
S = Tensor("S", (PARAMETERS, PARAMETERS), (0, 0))
Z, U, V = Tensor("z", (DATA,)), Tensor("u", (DATA,)), Tensor("v", (PARAMETERS,))
TENSORS = (A, M, J, G, R, S, Z, U, V)

a, b, c, d, e = data_indices("abcde")
i, j, k = parameter_indices("ijk")

SIZES = {DATA: 3, PARAMETERS: 2}


def integers(tensor, seed):
    shape = [SIZES[space] for space in tensor.slots]
    array = np.random.default_rng(seed).choice([-2, -1, 2, 3], shape)
    return np.tril(array) + np.tril(array, -1).T if tensor in (M, S) else array


# Small whole numbers: floats, where ones and unit matrices bring them in, are exact.
ARRAYS = {tensor.name: integers(tensor, seed) for seed, tensor in enumerate(TENSORS)}
NUMBERS = {"D": 3, "P": 2, "eta": 5}


def evaluated(polynomial):
    return polynomial.evaluate(NUMBERS | {n: x.astype(object) for n, x in ARRAYS.items()})


def columns_of(array):
    return array[:, None] if array.ndim == 1 else array


def by_numpy(expression):
    """Run the code that SymPy prints for NumPy."""
    wanted = sorted(expression.free_symbols, key=str)
    values = NUMBERS | {name: columns_of(array) for name, array in ARRAYS.items()}
    return sp.lambdify(wanted, expression, "numpy")(*(values[str(s)] for s in wanted))


def by_sympy(expression):
    """Put explicit matrices in place of symbols."""
    sized = expression.subs({names.D: 3, names.P: 2, names.eta: 5})
    explicit = {
        s: sp.ImmutableMatrix(columns_of(ARRAYS[s.name])) for s in sized.atoms(sp.MatrixSymbol)
    }
    result = sized.subs(explicit).doit()
    return np.array(result.tolist()) if isinstance(result, sp.MatrixBase) else result


def check(form, polynomial, by=by_numpy):
    expected = evaluated(polynomial)
    value = by(form(polynomial))
    if polynomial.free:
        assert value.shape == columns_of(expected).shape
        np.testing.assert_array_equal(value, columns_of(expected))
    else:
        assert value == expected


EDGES = {
    (DATA, DATA): [A, M],
    (DATA, PARAMETERS): [J, G],
    (PARAMETERS, DATA): [J, G],
    (PARAMETERS, PARAMETERS): [R, S],
}


@st.composite
def networks(draw, free):
    """Draw a product of tensors that can be built by joining and splitting edges.

    Nodes of the network are indices. Every step hangs something on a node, or splits or doubles an
    edge, so that what comes out is a matrix expression whatever the order of the steps.
    """
    nodes = list(free)
    edges, columns = [], []
    names_of = {DATA: iter("ABCDEFGH"), PARAMETERS: iter("IJKLMNOP")}

    def new_node():
        space = draw(st.sampled_from((DATA, PARAMETERS)))
        nodes.append(Index(space, next(names_of[space])))
        return nodes[-1]

    if len(free) == 2 and draw(st.booleans()):
        edges.append(tuple(free))
    for action in draw(st.lists(st.integers(0, 5), min_size=1 if free else 2, max_size=6)):
        node = draw(st.sampled_from(nodes)) if nodes else new_node()
        if action == 0:
            edges.append((node, new_node()))
        elif action == 1:
            columns.append(node)
        elif action == 2:
            edges.append((node, node))
        elif action in (3, 4) and edges:
            one, other = edge = draw(st.sampled_from(edges))
            if action == 3:
                edges.remove(edge)
                middle = new_node()
                edges += [(one, middle), (middle, other)]
            else:
                edges.append(edge)
        elif action == 5:
            columns.append(new_node())
    result = constant(draw(st.sampled_from([1, -3, 2 * names.eta, names.eta - 1])))
    for one, other in edges:
        tensor = draw(st.sampled_from(EDGES[one.space, other.space]))
        flip = draw(st.booleans()) if one.space == other.space else one.space == PARAMETERS
        result = result * (tensor(other, one) if flip else tensor(one, other))
    for node in columns:
        result = result * draw(st.sampled_from([Z, U] if node.space == DATA else [V]))(node)
    return result.sum(*(n for n in nodes if n not in free))


# A term with all of them keeps a polynomial from losing some free index.
ONE = {DATA: U, PARAMETERS: V}


@st.composite
def polynomials(draw):
    free = draw(st.sampled_from([(), (a,), (i,), (a, b), (a, i), (i, j)]))
    terms = draw(st.lists(networks(free), min_size=1, max_size=2))
    whole = math.prod((ONE[index.space](index) for index in free), start=constant(1))
    return sum(terms, start=constant(0)) + whole


# Polynomials take a while to make.
SLOW = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.mark.slow
@given(polynomials())
@settings(SLOW, max_examples=80)
def test_matrix_forms_of_random_networks(polynomial):
    check(as_matrix, polynomial)


@given(polynomials())
@settings(SLOW, max_examples=30)
def test_explicit_matrices_of_random_networks(polynomial):
    check(as_matrix, polynomial, by_sympy)


@given(polynomials())
@settings(SLOW, max_examples=30)
def test_latex_names_no_class(polynomial):
    text = sp.latex(as_matrix(polynomial))
    for name in ("Diag", "Ones", "Unit", "Tr", "Hadamard", "Total", "Trace", "Matrix", "mathtt"):
        assert name not in text


FORMS = {
    "chain": (A(a, c) * M(c, d) * A(b, d)).sum(c, d),
    "gram": (J(a, i) * S(i, j) * G(b, j)).sum(i, j),
    "triple index": (A(a, c) * A(c, b) * Z(c)).sum(c),
    "fourfold index": (M(a, c) * M(c, b) * M(c, c) * Z(c) * Z(c)).sum(c),
    "diagonal": (A(c, c) * A(a, c)).sum(c),
    "Hadamard": A(a, b) * M(a, b) * A(b, a),
    "Hadamard of products": (A(a, c) * A(c, b)).sum(c) * (J(a, i) * G(b, i)).sum(i),
    "trace": (A(a, b) * A(b, c) * M(c, a)).sum(a, b, c),
    "trace of one": A(a, a).sum(a),
    "trace of a Hadamard product": (A(a, b) * A(a, b) * M(a, b)).sum(a, b),
    "two traces": A(a, a).sum(a) * S(i, i).sum(i),
    "quadratic form": (Z(a) * A(a, b) * U(b)).sum(a, b),
    "norm": (Z(a) * Z(a)).sum(a),
    "sum": Z(a).sum(a),
    "cubes": (Z(a) * Z(a) * Z(a)).sum(a),
    "outer product": Z(a) * Z(b),
    "outer product with matrices": (A(a, c) * Z(c)).sum(c) * (J(b, i) * V(i)).sum(i),
    "rectangular": (M(a, b) * J(b, i)).sum(b),
    "column": (A(a, b) * Z(b)).sum(b),
    "row sums": A(a, b).sum(b),
    "column sums": A(b, a).sum(b),
    "sums of both": A(a, c).sum(c) * A(d, b).sum(d),
    "all entries": A(a, b).sum(a, b),
    "triple column": Z(a) * U(a) * Z(a),
    "star": (Z(a) * A(a, b) * A(a, c) * A(a, d) * Z(b) * Z(c) * Z(d)).sum(a, b, c, d),
    "tree": (A(a, c) * A(c, d) * A(c, e) * Z(d) * U(e)).sum(c, d, e),
    "delta": delta(a, b) * (Z(c) * Z(c)).sum(c),
    "delta and matrix": delta(a, b) * Z(a) + M(a, b),
    "diagonal of a product": delta(a, b) * (A(a, c) * A(c, a)).sum(c),
    "ones": Z(a) + Z(b),
    "one and a matrix": A(a, b) + 1,
    "free twice": A(a, a) * Z(a),
    "free thrice": A(a, a) * Z(a) * M(a, b) * U(b),
    "ladder": (M(a, c) * M(c, b) * A(a, c) * A(c, b)).sum(c),
    "terms that cancel": (A(a, b) + 1) * Z(a) - A(a, b) * Z(a),
    "parameters": (R(i, k) * R(k, j) * V(k) + delta(i, j)).sum(k),
    "size of a range": constant(1).sum(a) * A(b, c) * Z(c),
}


@pytest.mark.parametrize("polynomial", FORMS.values(), ids=FORMS.keys())
def test_forms(polynomial):
    check(as_matrix, polynomial)
    check(as_matrix, polynomial, by_sympy)


def test_rows_and_columns_may_be_chosen():
    polynomial = (A(a, c) * J(c, i)).sum(c)
    product = ARRAYS["A"] @ ARRAYS["J"]
    np.testing.assert_array_equal(by_numpy(as_matrix(polynomial)), product)
    np.testing.assert_array_equal(by_numpy(as_matrix(polynomial, i, a)), product.T)
    np.testing.assert_array_equal(by_numpy(as_matrix(A(b, a), a, b)), ARRAYS["A"].T)
    # an index that the polynomial lacks
    wide = by_numpy(as_matrix(Z(a), a, b))
    np.testing.assert_array_equal(wide, np.repeat(columns_of(ARRAYS["z"]), 3, axis=1))


def test_nothing_is_a_matrix_of_zeros():
    assert as_matrix(constant(0)) == 0
    assert as_matrix(constant(0), a, i) == sp.ZeroMatrix(names.D, names.P)
    assert as_matrix(constant(0), a) == sp.ZeroMatrix(names.D, 1)


def test_known_forms_are_the_familiar_ones():
    m, z = matrix_of(M), matrix_of(Z)
    theta = matrix_of(Tensor("Theta", (DATA, DATA), (0, 0)))
    assert matrix_of(Tensor("Theta", (DATA, DATA))) == names.Theta == theta
    assert as_matrix((M(a, c) * M(c, b)).sum(c)) == m * m
    assert as_matrix(Z(a) * Z(b)) == z * z.T
    assert as_matrix((J(a, i) * S(i, j) * J(b, j)).sum(i, j)) == (
        matrix_of(J) * matrix_of(S) * matrix_of(J).T
    )
    # once for both orders of writing the same
    two = as_matrix(
        (A(a, b) * A(b, c) * M(c, a)).sum(a, b, c) - (M(c, a) * A(a, b) * A(b, c)).sum(a, b, c)
    )
    assert two == 0


def test_latex_of_known_forms():
    assert sp.latex(as_matrix((M(a, c) * M(c, c) * M(c, b)).sum(c))) == (
        r"M \operatorname{diag}\left(M\right) M"
    )
    assert sp.latex(as_matrix(A(a, a).sum(a))) == r"\operatorname{tr}\left(A\right)"
    assert sp.latex(as_matrix((Z(a) * Z(a)).sum(a))) == r"\left(z^{T} z\right)"
    assert sp.latex(as_matrix(delta(a, b))) == "I"
    assert sp.latex(as_matrix(A(a, b).sum(b))) == r"A \mathbf{1}"


def test_three_free_indices_are_refused():
    refused(as_matrix, A(a, b) * Z(c), names=["at most two free indices", "got 3"])
    refused(as_matrix, A(a, b) * Z(c), a, b, names=["at most two free indices", "got 3"])


def test_a_tensor_of_three_indices_is_refused():
    traced = CURVATURE(a, i, i).sum(i)
    refused(as_matrix, traced, names=["Q must have one or two indices", "got 3"])
    refused(matrix_of, Tensor("c", ()), names=["c must have one or two indices", "got 0"])


@pytest.mark.parametrize("free", [(), (a,), (a, b)])
def test_a_network_in_which_all_indices_meet_is_refused(free):
    four = data_indices("abcd") if len(free) < 2 else data_indices("abcde")
    product = functools.reduce(
        lambda x, y: x * y, (A(x, y) for x, y in itertools.combinations(four, 2))
    )
    refused(as_matrix, product.sum(*(n for n in four if n not in free)), names=["chain or a tree"])


@pytest.mark.parametrize(
    ("old", "new", "case"),
    [
        ("return self if self.symmetric else", "return self if True else", "chain"),
        ("(*self.weights(skip=1), *last)", "last", "tree"),
        ("Hadamard(*factors)", "sp.MatMul(*factors)", "Hadamard"),
    ],
)
def test_a_wrong_form_fails_the_comparison(mutated, old, new, case):
    module = mutated(matrices, old, new)
    with pytest.raises(AssertionError):
        check(module.as_matrix, FORMS[case])
