"""Kernels and options that the tests of the theory share."""

import itertools
import json
from pathlib import Path

import numpy as np

SCHEMES = ("without_replacement", "with_replacement", "bernoulli")
# (momentum, nesterov); Nesterov below -1/3 has its own edge
MOMENTA = [(0.0, False), *itertools.product((0.5, 0.9, -0.3, -0.6), (False, True))]
RECORDS = json.loads((Path(__file__).parents[1] / "data" / "linear.json").read_text("utf-8"))


def random_ntk(seed, n_data, n_params):
    jacobian = np.random.default_rng(seed).normal(size=(n_data, n_params))
    return jacobian @ jacobian.T / n_data
