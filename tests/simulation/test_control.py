"""A rule that holds K by the learning rate."""

import copy
import pickle

import numpy as np
import pytest

import quadmodel as qm


def test_the_update():
    rule = qm.HoldK(0.5, gain=1.0)
    assert rule.renewed(0.1, 0.25) == pytest.approx(0.2)
    assert rule.renewed(0.1, 0.1) == pytest.approx(0.2)  # at most doubled
    assert rule.renewed(0.1, np.inf) == rule.renewed(0.1, np.nan) == pytest.approx(0.05)
    assert rule.renewed(0.1, 0.0) == pytest.approx(0.2)
    assert qm.HoldK(0.5, gain=0.5).renewed(0.1, 0.25) == pytest.approx(0.1 * 2**0.5)
    assert rule.settled(lambda rate: rate**2, 3.0) == pytest.approx(0.5**0.5, rel=1e-3)


def test_a_rule_is_no_number():
    rule = qm.HoldK(0.5, every=20)
    assert np.isnan(rule + 1.0)
    assert rule == qm.HoldK(0.5, every=20) != qm.HoldK(0.5)
    assert rule == copy.deepcopy(rule) == pickle.loads(pickle.dumps(rule))
    sgd = qm.SGD(rule, 4)
    assert sgd.spec()["learning_rate"] == repr(rule)
    assert qm.SGD(0.1, 4).rule is None
    model = qm.Ensemble(20, 40).sample(seed=0)
    for refusing in (
        lambda: qm.noise_kernel_norm(model.ntk(), sgd),
        lambda: qm.predict(model, sgd, 5),
        lambda: qm.mean_field(model, sgd, 5),
        lambda: qm.lyapunov_exponent(model, sgd, 5),
        lambda: qm.large_p_limit(model, sgd, 5),
        lambda: qm.edge_of_stability(model.ntk(), sgd) and qm.late_time_rate(model.ntk(), sgd),
    ):
        with pytest.raises(ValueError, match="learning_rate must be a number here, got HoldK"):
            refusing()
    with pytest.raises(ValueError, match="a number or a rule that holds exact, finite, paper here"):
        qm.simulate(model, qm.SGD(qm.HoldK(0.5, norm="trace"), 4), 5)
    for values in ({"target": 0.0}, {"target": 0.5, "gain": 2.0}, {"target": 0.5, "most": 1.0}):
        with pytest.raises(ValueError, match="must be a finite number"):
            qm.HoldK(**values)


@pytest.mark.parametrize("norm", ["exact", "finite", "paper"])
@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_linear_models_start_at_the_target_and_stay(norm, momentum):
    model = qm.Ensemble(20, 40).sample(seed=0)
    sgd = qm.SGD(qm.HoldK(0.5, norm=norm, every=5), 4, momentum=momentum)
    found = qm.simulate(model, sgd, 20, replicas=3, record_every=10, observables=("loss",))
    template = qm.SGD(1.0, 4, momentum=momentum)
    wanted = qm.critical_learning_rate(model.ntk(), template, norm=norm, level=0.5)
    np.testing.assert_allclose(found.learning_rate, wanted, rtol=2e-3)
    assert found.attrs["learning_rate"].startswith("HoldK(target=0.5")
    # The steps are those at that learning rate.
    rate = float(found.learning_rate[0, 0])
    at = qm.SGD(rate, 4, momentum=momentum)
    plain = qm.simulate(model, at, 5, replicas=3, record_every=5, observables=("loss",))
    held = qm.simulate(model, sgd, 5, replicas=3, record_every=5, observables=("loss",))
    np.testing.assert_array_equal(held.loss, plain.loss)


def test_curved_models_are_held():
    model = qm.Ensemble(30, 60, curvature=0.5).sample(seed=1)
    names = ("noise_kernel_norm_exact", "loss")
    rule = qm.HoldK(0.5, every=5)
    held = qm.simulate(model, qm.SGD(rule, 3), 200, replicas=2, record_every=5, observables=names)
    first = float(held.learning_rate[0, 0])
    free = qm.simulate(model, qm.SGD(first, 3), 200, replicas=2, record_every=5, observables=names)
    norms = held.noise_kernel_norm_exact.isel(step=slice(10, None))
    assert (np.abs(np.log(norms / 0.5)) < 0.1).all()
    assert (held.divergence_step == -1).all()
    # Without the rule K leaves the target, and every replica has a rate of its own with it.
    late = free.noise_kernel_norm_exact.isel(step=-1)
    assert (~(np.abs(np.log(late / 0.5)) < 0.1)).all()
    assert held.learning_rate[0, -1] != held.learning_rate[1, -1]
