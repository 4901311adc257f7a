"""track(): the package's own SGD on networks, what it records, and its checkpoints."""

import copy

import numpy as np
import pytest
import xarray as xr

import quadmodel as qm
from quadmodel.batches import batch_indices
from quadmodel.theory._noise_blocks import block_norm_of_modes
from tests.networks.nets import GivenJacobian, classes_for, inputs_for, small_net, torch

SIGMAS = 5.7
OPTIONS = [
    {},
    {"momentum": 0.6, "weight_decay": 0.1},
    {"momentum": 0.6, "nesterov": True, "weight_decay": 0.1},
    {"sampling": "with_replacement"},
    {"sampling": "bernoulli", "momentum": -0.3},
]


def linear_problem(n_data=12, n_params=20):
    """Return a linear network at the origin, its inputs and targets, and the model of it."""
    rng = np.random.default_rng(0)
    rows, targets = rng.standard_normal((n_data, n_params)), rng.standard_normal((n_data, 1))
    model = qm.QuadraticModel(-targets[:, 0], rows)
    return GivenJacobian(rows), torch.arange(n_data), torch.as_tensor(targets), model


def targets_for(n_data, seed=3):
    return torch.as_tensor(np.random.default_rng(seed).standard_normal((n_data, 1)))


@pytest.mark.parametrize("options", OPTIONS)
def test_linear_networks_train_as_the_simulation_does(options):
    net, inputs, targets, model = linear_problem()
    sgd = qm.SGD(0.1, 3, **options)
    names = (
        "loss", "squared_distance", "ntk_largest_eigenvalue", "ntk_trace", "noise_kernel_norm",
        "noise_kernel_norm_finite", "noise_kernel_norm_exact", "hessian_largest_eigenvalue",
    )  # fmt: skip
    probe = qm.networks.Probe(every=10, observables=names)
    found = qm.networks.track(net, inputs, targets, sgd, 40, probe=probe, seed=5)
    wanted = qm.simulate(model, sgd, 40, seed=5, record_every=10, observables=names)
    np.testing.assert_array_equal(found.step, wanted.step)
    for name in names:
        tolerance = 2e-3 if "hessian" in name else 1e-9
        np.testing.assert_allclose(found[name], wanted[name], rtol=tolerance, err_msg=name)
        assert found[name].attrs["units"] == wanted[name].attrs["units"]
    assert found.divergence_step == -1


def test_pytorchs_own_sgd():
    net, inputs, targets = small_net(), inputs_for(9), targets_for(9)
    other = copy.deepcopy(net)
    sgd = qm.SGD(0.3, 4, momentum=0.9, weight_decay=0.02)
    qm.networks.track(net, inputs, targets, sgd, 30, seed=1)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.3, momentum=0.9, weight_decay=0.02)
    for step in range(30):
        points = batch_indices(9, 4, seed=1, step=step)
        optimizer.zero_grad()
        (0.5 * torch.nn.functional.mse_loss(other(inputs[points]), targets[points])).backward()
        optimizer.step()
    for here, there in zip(net.parameters(), other.parameters(), strict=True):
        np.testing.assert_allclose(here.detach(), there.detach(), rtol=1e-10)


def test_shuffled_epochs():
    from quadmodel.networks._descent import Batches

    drawn = Batches("epochs", 10, qm.SGD(0.1, 4), seed=2)
    epochs = [[drawn.at(3 * epoch + k) for k in range(3)] for epoch in range(2)]
    orders = [np.concatenate([points for points, _ in epoch]) for epoch in epochs]
    assert [len(points) for points, _ in epochs[0]] == [4, 4, 2]
    assert [weight for _, weight in epochs[0]] == [0.25, 0.25, 0.5]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert (orders[0] != orders[1]).any()
    # A step's batch doesn't depend on what was drawn before it.
    again = Batches("epochs", 10, qm.SGD(0.1, 4), seed=2).at(4)[0]
    np.testing.assert_array_equal(again, epochs[1][1][0])


def test_rules_are_those_of_the_simulation():
    net, inputs, targets, model = linear_problem()
    sgd = qm.SGD(qm.HoldK(0.4, every=10), 3)
    probe = qm.networks.Probe(every=20, observables=("loss",))
    found = qm.networks.track(net, inputs, targets, sgd, 40, probe=probe)
    wanted = qm.simulate(model, sgd, 40, record_every=20, observables=("loss",))
    np.testing.assert_allclose(found.loss, wanted.loss, rtol=1e-8)
    np.testing.assert_allclose(found.learning_rate, wanted.learning_rate, rtol=1e-9)


def test_rules_hold_networks():
    # K of a network this small moves by a tenth in a few steps.
    inputs, targets = inputs_for(30), targets_for(30)
    for norm, name in (("exact", "_exact"), ("trace", "_trace")):
        sgd = qm.SGD(qm.HoldK(0.2, norm=norm, every=2), 3)
        probe = qm.networks.Probe(every=10, observables=[f"noise_kernel_norm{name}"])
        found = qm.networks.track(small_net(), inputs, targets, sgd, 200, probe=probe)
        away = np.abs(np.log(found[f"noise_kernel_norm{name}"][0] / 0.2))
        assert float(away[0]) < 2e-3
        assert float(away.median()) < 0.2
        assert np.unique(found.learning_rate).size > 10


def interrupted(monkeypatch, at_step):
    """Let trainings be interrupted at a step."""
    from quadmodel.networks._descent import Descent

    advance = Descent.advance

    def stopping(self, n_steps):
        if self.step >= at_step:
            raise KeyboardInterrupt
        advance(self, n_steps)

    monkeypatch.setattr(Descent, "advance", stopping)


@pytest.mark.parametrize("batches", ["independent", "epochs"])
@pytest.mark.parametrize(
    "rate", [0.2, qm.HoldK(0.3, every=15), qm.HoldK(0.2, norm="trace", every=15)]
)
def test_resumed_runs_have_the_same_bits(tmp_path, monkeypatch, batches, rate):
    inputs, targets = inputs_for(9), targets_for(9)
    sgd = qm.SGD(rate, 4, momentum=0.5, nesterov=True)
    names = ("loss", "noise_kernel_norm_exact", "noise_kernel_norm_trace", "batch_sharpness")
    probe = qm.networks.Probe(every=10, observables=names, sample=3)
    options = {"probe": probe, "batches": batches, "seed": 7}

    def run(net, **more):
        return qm.networks.track(net, inputs, targets, sgd, 60, **options, **more)

    straight, broken = small_net(), small_net()
    wanted = run(straight)
    path = tmp_path / "run.npz"
    with monkeypatch.context() as patched:
        interrupted(patched, 30)
        with pytest.raises(KeyboardInterrupt):
            run(broken, checkpoint=path)
    fresh = small_net()
    xr.testing.assert_identical(run(fresh, checkpoint=path), wanted)
    for here, there in zip(fresh.parameters(), straight.parameters(), strict=True):
        np.testing.assert_array_equal(here.detach(), there.detach())
    assert [file.name for file in tmp_path.iterdir()] == ["run.npz"]
    # A run that has ended is read, not trained again.
    xr.testing.assert_identical(run(small_net(), checkpoint=path), wanted)


def test_forks_go_on_from_the_same_state(tmp_path):
    inputs, targets = inputs_for(9), targets_for(9)
    sgd, probe = qm.SGD(0.2, 4, momentum=0.5), qm.networks.Probe(every=10)
    path = tmp_path / "run.npz"
    half, whole = small_net(), small_net()
    qm.networks.track(half, inputs, targets, sgd, 20, probe=probe, checkpoint=path)
    wanted = qm.networks.track(whole, inputs, targets, sgd, 40, probe=probe)
    forked = small_net(seed=9)
    found = qm.networks.track(forked, inputs, targets, sgd, 40, probe=probe, start=path)
    assert found.step.values.tolist() == [20, 30, 40]
    np.testing.assert_array_equal(found.loss, wanted.loss[:, 2:])
    for here, there in zip(forked.parameters(), whole.parameters(), strict=True):
        np.testing.assert_array_equal(here.detach(), there.detach())
    # Another batch size or learning rate begins at the same loss and parts from there.
    for other in (qm.SGD(0.2, 2, momentum=0.5), qm.SGD(0.1, 4, momentum=0.5)):
        found = qm.networks.track(small_net(), inputs, targets, other, 40, probe=probe, start=path)
        assert found.loss[0, 0] == wanted.loss[0, 2]
        assert (found.loss[0, 1:] != wanted.loss[0, 3:]).all()


def test_checkpoints_of_something_else(tmp_path):
    inputs, targets, sgd = inputs_for(9), targets_for(9), qm.SGD(0.2, 4)
    path = tmp_path / "run.npz"
    qm.networks.track(small_net(), inputs, targets, sgd, 20, checkpoint=path)

    def again(net, sgd, **more):
        return qm.networks.track(net, inputs, targets, sgd, 40, **{"checkpoint": path, **more})

    with pytest.raises(ValueError, match=r"same learning_rate, got 0\.2 in place of 0\.1"):
        again(small_net(), qm.SGD(0.1, 4))
    with pytest.raises(ValueError, match="with the same initial"):
        again(small_net(seed=1), sgd)
    with pytest.raises(ValueError, match=r"of this net, got one whose 0\.bias has shape"):
        again(small_net(width=6), sgd)
    with pytest.raises(ValueError, match="start must be a checkpoint that exists"):
        again(small_net(), sgd, checkpoint=None, start=tmp_path / "none.npz")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"must be a plain .npy or .npz file"):
        again(small_net(), sgd)


def test_divergence_is_a_result():
    net, inputs, targets, _ = linear_problem()
    found = qm.networks.track(net, inputs, targets, qm.SGD(3.0, 3), 400)
    assert 0 < found.divergence_step[0] < 400
    late = found.isel(step=-1)
    assert late.loss == np.inf
    assert np.isnan(late.noise_kernel_norm_exact)
    assert found.noise_kernel_norm_exact[0, 0] == np.inf


@pytest.mark.statistical
def test_products_give_what_the_ntk_gives(monkeypatch):
    net, inputs, classes = small_net(3), inputs_for(12), classes_for(12, 3)
    names = [
        "accuracy", "ntk_largest_eigenvalue", "ntk_trace", "noise_kernel_norm",
        "noise_kernel_norm_finite", "noise_kernel_norm_exact", "noise_kernel_norm_trace",
        "row_norm_spread", "batch_sharpness",
    ]  # fmt: skip
    probe = qm.networks.Probe(every=[0], observables=names)

    def record():
        return qm.networks.track(
            copy.deepcopy(net),
            inputs,
            classes,
            qm.SGD(0.5, 3),
            1,
            loss="cross_entropy",
            probe=probe,
        ).isel(replica=0, step=0)

    dense = record()
    monkeypatch.setattr("quadmodel.networks._records._DENSE", 0)
    free = record()
    for name in ("noise_kernel_norm", "noise_kernel_norm_finite", "noise_kernel_norm_exact"):
        error = float(free[f"{name}_standard_error"])
        assert dense[f"{name}_standard_error"] == 0
        assert 0 < error < 0.04 * free[name]
        assert abs(free[name] - dense[name]) < SIGMAS * error + 1e-3 * dense[name]
    for name in ("ntk_trace", "row_norm_spread", "ntk_largest_eigenvalue"):
        assert free[name] == pytest.approx(float(dense[name]), rel=2e-3)
    direct = qm.networks.noise_kernel_norm(
        net, inputs, classes, qm.SGD(0.5, 3), loss="cross_entropy"
    )
    assert dense.noise_kernel_norm_exact == pytest.approx(direct.value, rel=1e-9)
    with torch.no_grad():
        right = (net(inputs).argmax(1) == classes).double().mean()
    assert dense.accuracy == pytest.approx(float(right))


def test_bound_by_the_trace():
    net, inputs, targets, model = linear_problem()
    sgd = qm.SGD(0.01, 3, momentum=0.5)
    probe = qm.networks.Probe(observables=["noise_kernel_norm_trace", "noise_kernel_norm_finite"])
    found = qm.networks.track(net, inputs, targets, sgd, 1, probe=probe).isel(replica=0, step=0)
    alike = np.full(12, np.trace(model.ntk()) / 12)
    wanted = qm.noise_kernel_norm(alike, sgd, norm="finite")
    assert found.noise_kernel_norm_trace == pytest.approx(wanted, rel=1e-10)
    assert 0.9 * found.noise_kernel_norm_finite < wanted < found.noise_kernel_norm_finite


class Sequence(torch.nn.Module if torch else object):
    """Linear layers along a sequence of three places."""

    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Linear(5, 4), torch.nn.Linear(4, 2, bias=False)

    def forward(self, points):
        places = torch.stack([points, points.sin(), points.cos()], 1)
        return self.last(torch.tanh(self.first(places)).mean(1))


@pytest.mark.statistical
@pytest.mark.parametrize("kind", ["layers", "sequence", "shared", "convolution"])
def test_row_norms_by_signs(kind):
    from quadmodel.networks._gradient_norms import squared_rows_by_signs
    from quadmodel.networks._linearisation import Linearisation

    inputs = inputs_for(300)
    nets = {
        "layers": lambda: small_net(2),
        "sequence": lambda: Sequence().double(),
        "shared": lambda: torch.nn.Sequential(*[torch.nn.Linear(5, 5).double()] * 2),
        "convolution": lambda: torch.nn.Sequential(
            torch.nn.Unflatten(1, (1, 5)), torch.nn.Conv1d(1, 2, 3), torch.nn.Flatten()
        ).double(),
    }
    at = Linearisation(nets[kind](), inputs)
    rows = np.array(
        [squared_rows_by_signs(at, np.random.default_rng(k)) for k in range(200)]
    )  # (draws, points)
    error = rows.std(0, ddof=1) / 200**0.5
    exact = qm.networks.row_norms(at.net, inputs) ** 2
    assert (np.abs(rows.mean(0) - exact) < 6.5 * error + 1e-9 * exact).all()
    assert not (np.abs(rows.mean(0) - 1.5 * exact) < 6.5 * error).all()


def test_a_sample_stands_for_all_points():
    # Of points that come four times each, every fourth holds all there is.
    rows = np.random.default_rng(0).standard_normal((10, 30))
    fourfold = np.repeat(rows, 4, axis=0)
    for outputs in (1, 2):
        sgd = qm.SGD(0.3, 3)
        wide = fourfold.reshape(10, 4, 30)
        if outputs == 2:  # pairs of rows are points
            wide = np.repeat(rows.reshape(5, 1, 2, 30), 4, axis=1)
        every = wide.reshape(40, 30)
        kernel = every @ every.T / (40 // outputs)
        part = rows @ rows.T / (10 // outputs)
        lam, vectors = np.linalg.eigh(kernel)
        whole = block_norm_of_modes(
            np.maximum(lam[::-1], 0), vectors[:, ::-1], sgd, outputs, 40 // outputs
        )
        lam, vectors = np.linalg.eigh(part)
        sample = block_norm_of_modes(lam[::-1], vectors[:, ::-1], sgd, outputs, 40 // outputs)
        assert sample == pytest.approx(whole, rel=1e-6)


def test_probes_of_a_part():
    net, inputs, targets = small_net(), inputs_for(40), targets_for(40)
    probe = qm.networks.Probe(points=20, seed=3)
    found = qm.networks.track(net, inputs, targets, qm.SGD(0.1, 30), 2, probe=probe)
    assert found.sizes["probe_point"] == found.attrs["n_probe"] == 20
    assert len(set(found.probe_point.values.tolist())) == 20
    norms = qm.networks.row_norms(net, inputs[found.probe_point.values.tolist()])
    assert found.ntk_trace[0, -1] == pytest.approx((norms**2).mean(), rel=1e-9)
    # The batch is larger than the probe, but not than the data.
    assert 0 < found.noise_kernel_norm_finite[0, 0] < np.inf


def test_what_is_out_of_range():
    net, inputs, targets, sgd = small_net(), inputs_for(9), targets_for(9), qm.SGD(0.1, 2)
    with pytest.raises(ValueError, match="batches must be one of independent, epochs"):
        qm.networks.track(net, inputs, targets, sgd, 5, batches="shuffled")
    other = qm.SGD(0.1, 2, sampling="bernoulli")
    with pytest.raises(ValueError, match="sgd must draw without replacement"):
        qm.networks.track(net, inputs, targets, other, 5, batches="epochs")
    with pytest.raises(ValueError, match="batch_size must be between 1 and n_data=9"):
        qm.networks.track(net, inputs, targets, qm.SGD(0.1, 10), 5)
    with pytest.raises(ValueError, match="probe must be a Probe, got int"):
        qm.networks.track(net, inputs, targets, sgd, 5, probe=3)
    with pytest.raises(ValueError, match="observables must be among"):
        qm.networks.Probe(observables=["fisher"])
    with pytest.raises(ValueError, match="every must be an integer"):
        qm.networks.Probe(every=0)
    with pytest.raises(ValueError, match="targets must be given"):
        qm.networks.track(net, inputs, None, sgd, 5)
