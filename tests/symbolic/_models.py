"""Models of rational numbers, and the comparison of means with brute force."""

from __future__ import annotations

import functools
from fractions import Fraction

import numpy as np

from quadmodel.symbolic.dynamics import expected
from tests.oracles.quadratic import draw_list, expected_moments
from tests.symbolic._exact import rationals

LIGHT = ("residual", "jacobian", "ntk")  # the second moment costs more than all others
QUANTITIES = (*LIGHT, "second_moment")

# The same derivation serves many values.
mean_of = functools.cache(expected)


class Model:
    """Rational values for the symbols and tensors of a mean, and for the brute force."""

    def __init__(self, n_data, n_params, eta, batch_size=1, sampling="without_replacement"):
        seed = 10 * n_data + n_params
        self.jacobian = rationals(seed, n_data, n_params)
        self.residual = rationals(seed + 1, n_data)
        self.mix = rationals(seed + 2, n_data, n_data)
        self.root = rationals(seed + 3, n_params, n_params)
        self.eta, self.draws = eta, draw_list(n_data, batch_size, sampling)
        self.values = {
            "J": self.jacobian,
            "z": self.residual,
            "Theta": self.jacobian @ self.jacobian.T / n_data,
            "C": self.mix @ self.mix.T,
            "S": self.root @ self.root.T,
            "eta": eta,
            "D": Fraction(n_data),
            "P": Fraction(n_params),
            "B": Fraction(batch_size),
        }

    def moments(self, steps, mix=None, root=None, **changed):
        """Return all means by brute force; those of odd order in Q vanish."""
        jacobian = changed.get("jacobian", self.jacobian)
        n_data = len(jacobian)
        moments = expected_moments(
            jacobian,
            changed.get("residual", self.residual),
            self.eta / n_data,
            self.draws,
            steps,
            mix,
            root,
            max_order=changed.get("max_order", 2),
        )
        assert not any(np.any(odd != 0) for orders in moments.values() for odd in orders[1::2])
        moments["ntk"] = [order / n_data for order in moments.pop("gram")]
        return {name: orders[0] + orders[2] for name, orders in moments.items()}


def check_means(expected, model, quantities, steps, **options):
    moments = model.moments(steps, model.mix, model.root)
    for quantity in quantities:
        mean = expected(quantity, steps, **options)
        np.testing.assert_array_equal(mean.evaluate(model.values), moments[quantity], quantity)
