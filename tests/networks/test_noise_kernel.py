"""K of networks: blocks of outputs by their definition, matrix-free beside dense."""

import numpy as np
import pytest

import quadmodel as qm
from tests.networks.nets import GivenJacobian, classes_for, inputs_for, small_net, torch

# Assertions on a random estimate: each holds but for 1e-8 (5.7 standard errors), below 1e-6 in all.
SIGMAS = 5.7


def rows_of(n_data, spread, seed=0, decay=0.0, n_params=None):
    """Return a Gaussian Jacobian with row norms of a log-deviation."""
    rng = np.random.default_rng(seed)
    n_params = n_params or 2 * n_data
    rows = rng.standard_normal((n_data, n_params)) * np.arange(1.0, n_params + 1) ** -decay
    return rows * np.exp(spread * rng.standard_normal(n_data))[:, None]


def at_paper_norm(kernel, batch_size, level=0.5, **options):
    """Return SGD at which the paper's K has a value."""
    sgd = qm.SGD(1.0, batch_size, **options)
    rate = qm.critical_learning_rate(kernel, sgd, norm="paper", level=level)
    return qm.SGD(rate, batch_size, **options)


def test_unequal_rows_raise_exact_over_paper_norm():
    # The values at 400 points; what they are varies with the draw by its largest rows.
    found = []
    for spread in (0, 0.25, 0.5, 0.75, 1):
        rows = rows_of(400, spread)
        sgd = at_paper_norm(rows @ rows.T / 400, 1)
        net = GivenJacobian(rows)
        found.append(qm.networks.noise_kernel_norm(net, torch.arange(400), None, sgd).value)
    np.testing.assert_allclose(found, [0.5065, 1.7778, 5.5862, 13.3104, 24.953], rtol=1e-3)


@pytest.mark.statistical
@pytest.mark.parametrize("spread", [0, 0.25, 0.5, 1])
@pytest.mark.parametrize("decay", [0.0, 0.7])
@pytest.mark.parametrize("options", [{}, {"momentum": 0.6, "sampling": "bernoulli"}])
def test_matrix_free_is_the_dense_norm(spread, decay, options):
    rows = rows_of(150, spread, decay=decay)
    net, points = GivenJacobian(rows), torch.arange(150)
    sgd = at_paper_norm(rows @ rows.T / 150, 3, **options)
    dense = qm.networks.noise_kernel_norm(net, points, None, sgd)
    assert dense.standard_error == 0
    found = qm.networks.noise_kernel_norm(net, points, None, sgd, method="matrix_free")
    assert found.standard_error <= 0.03 * found.value
    assert abs(found.value - dense.value) < SIGMAS * found.standard_error
    # A negative control: the lower bound is not the exact norm.
    if decay or spread:
        lower = qm.networks.noise_kernel_norm(net, points, None, sgd, norm="finite").value
        assert abs(found.value - lower) > SIGMAS * found.standard_error


@pytest.mark.statistical
@pytest.mark.parametrize("norm", ["finite", "paper"])
@pytest.mark.parametrize("decay", [0.0, 0.7])
def test_bounds_by_quadrature(norm, decay):
    rows = rows_of(150, 0.3, decay=decay)
    net, points = GivenJacobian(rows), torch.arange(150)
    sgd = at_paper_norm(rows @ rows.T / 150, 3)
    dense = qm.noise_kernel_norm(rows @ rows.T / 150, sgd, norm=norm)
    formed = qm.networks.noise_kernel_norm(net, points, None, sgd, norm=norm)
    assert formed.value == pytest.approx(dense, rel=1e-10)
    found = qm.networks.noise_kernel_norm(
        net, points, None, sgd, norm=norm, method="matrix_free", relative_error=0.01
    )
    assert 0 < found.standard_error <= 0.01 * found.value
    assert abs(found.value - dense) < SIGMAS * found.standard_error


def dense_blocks(kernel, sgd, n_outputs):
    """Return K by the matrix of X -> blockdiag(Y), Y = (1-eta Theta) Y (...) + noise, on all X."""
    n_data = len(kernel) // n_outputs
    lam, vectors = np.linalg.eigh(kernel)
    lam = np.maximum(lam, 0)
    eta, size = sgd.learning_rate, sgd.batch_size
    gamma = n_data * (n_data - size) / (size * (n_data - 1))
    x, y = lam[:, None], lam[None, :]
    with np.errstate(invalid="ignore", divide="ignore"):
        bare = eta * x * y / (x + y - eta * x * y)
        dressed = np.where(x * y > 1e-14, bare / (1 + gamma / n_data * bare), 0)
    units = [(i, a, b) for i in range(n_data) for a in range(n_outputs) for b in range(n_outputs)]
    matrix = np.empty((len(units), len(units)))
    for column, (i, a, b) in enumerate(units):
        block = np.zeros_like(kernel)
        block[i * n_outputs + a, i * n_outputs + b] = 1
        image = vectors @ (dressed * (vectors.T @ block @ vectors)) @ vectors.T
        matrix[:, column] = [image[j * n_outputs + c, j * n_outputs + d] for j, c, d in units]
    return gamma * np.abs(np.linalg.eigvals(matrix)).max()


@pytest.mark.statistical
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_several_outputs(loss):
    net, inputs, classes = small_net(3), inputs_for(12), classes_for(12, 3)
    targets = classes if loss == "cross_entropy" else None
    kernel = qm.networks.ntk(net, inputs, targets, loss=loss)
    sgd = qm.SGD(0.6 / np.linalg.eigvalsh(kernel)[-1], 2)
    wanted = dense_blocks(kernel, sgd, 3)
    found = qm.networks.noise_kernel_norm(net, inputs, targets, sgd, loss=loss)
    assert found.value == pytest.approx(wanted, rel=1e-6)
    free = qm.networks.noise_kernel_norm(
        net, inputs, targets, sgd, loss=loss, method="matrix_free", relative_error=0.01
    )
    assert free.standard_error <= 0.01 * free.value
    assert abs(free.value - wanted) < SIGMAS * free.standard_error
    for norm, share in (("finite", 1.0), ("paper", None)):
        lower = qm.networks.noise_kernel_norm(net, inputs, targets, sgd, loss=loss, norm=norm)
        assert share is None or 0 < lower.value <= share * wanted
        quadrature = qm.networks.noise_kernel_norm(
            net, inputs, targets, sgd, loss=loss, norm=norm, method="matrix_free"
        )
        tolerance = SIGMAS * quadrature.standard_error + 1e-3 * lower.value
        assert abs(quadrature.value - lower.value) < tolerance


@pytest.mark.parametrize("method", ["dense", "matrix_free"])
@pytest.mark.parametrize("norm", ["exact", "finite", "paper"])
def test_full_batches_and_the_edge(method, norm):
    net, inputs = small_net(), inputs_for(9)
    largest = np.linalg.eigvalsh(qm.networks.ntk(net, inputs))[-1]
    options = {"method": method, "norm": norm}
    sgd = qm.SGD(1.9 / largest, 9)
    assert qm.networks.noise_kernel_norm(net, inputs, None, sgd, **options).value == 0
    sgd = qm.SGD(2.001 / largest, 4)
    assert qm.networks.noise_kernel_norm(net, inputs, None, sgd, **options).value == np.inf


def test_a_layer_of_its_own():
    net, inputs = small_net(), inputs_for(9)
    sgd = qm.SGD(0.3, 2)
    kernel = qm.networks.ntk(net, inputs, parameters="2.*")
    found = qm.networks.noise_kernel_norm(net, inputs, None, sgd, parameters="2.*")
    assert found.value == pytest.approx(qm.noise_kernel_norm(kernel, sgd), rel=1e-10)


@pytest.mark.statistical
def test_same_seed_same_bits_and_single_precision():
    rows = rows_of(60, 0.3).astype(np.float32)
    net, points, sgd = GivenJacobian(rows), torch.arange(60), qm.SGD(0.02, 2)
    dense = qm.networks.noise_kernel_norm(net, points, None, sgd)
    exact = qm.noise_kernel_norm(rows.astype(float) @ rows.T.astype(float) / 60, sgd)
    assert dense.value == pytest.approx(exact, rel=1e-4)
    first = qm.networks.noise_kernel_norm(net, points, None, sgd, method="matrix_free", seed=4)
    second = qm.networks.noise_kernel_norm(net, points, None, sgd, method="matrix_free", seed=4)
    assert first == second
    assert abs(first.value - exact) < SIGMAS * first.standard_error


def test_what_is_out_of_range():
    net, inputs = small_net(), inputs_for(9)
    with pytest.raises(ValueError, match="norm must be one of"):
        qm.networks.noise_kernel_norm(net, inputs, None, qm.SGD(0.1, 2), norm="trace")
    with pytest.raises(ValueError, match="method must be one of dense, matrix_free"):
        qm.networks.noise_kernel_norm(net, inputs, None, qm.SGD(0.1, 2), method="slow")
    with pytest.raises(ValueError, match="batch_size must be between 1 and n_data=9"):
        qm.networks.noise_kernel_norm(net, inputs, None, qm.SGD(0.1, 10))
    with pytest.raises(ValueError, match="relative_error must be"):
        qm.networks.noise_kernel_norm(net, inputs, None, qm.SGD(0.1, 2), relative_error=0)


@pytest.mark.statistical
@pytest.mark.parametrize("count", [2, 8])
def test_the_residual_of_noisy_images_is_unbiased(count):
    from quadmodel.networks._exact_norm import Space, _ritz

    # A point of its own and 29 others, with images that are known; noise across the rest's
    # direction leaves the Ritz pair as it is, and would add its square to that of the residual.
    rng = np.random.default_rng(0)
    blocks = rng.uniform(0.5, 1.5, (30, 1, 1))
    single, rest = np.ones((1, 1, 1)), blocks.copy()
    rest[0] = 0.0
    rest /= np.linalg.norm(rest)
    space = Space([0], single, rng.uniform(0, 0.2, (1, 30, 1, 1)), rest)
    mean = 0.6 * rest + 0.05 * rng.standard_normal(rest.shape)
    exact = _ritz(space, np.array([mean, mean]))
    found, noises = [], []
    for _ in range(2000):
        noise = 0.1 * rng.standard_normal((count, *rest.shape))
        noise -= np.einsum("nabc,abc->n", noise, rest)[:, None, None, None] * rest
        one = _ritz(space, mean + noise)
        assert one.value == pytest.approx(exact.value, rel=1e-9)
        found.append(one.correction)
        # What would stay without the term.
        noises.append(one.weight_of_rest**2 * 0.1**2 * 29 / count / one.value)
    error = np.std(found, ddof=1) / 2000**0.5
    assert abs(np.mean(found) - exact.correction) < SIGMAS * error
    assert np.mean(noises) > 5 * SIGMAS * error
