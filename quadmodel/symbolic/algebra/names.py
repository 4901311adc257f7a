"""The symbols that all derivations share, and what they stand for."""

from __future__ import annotations

import sympy as sp

D = sp.Symbol("D", integer=True, positive=True)  # data points
P = sp.Symbol("P", integer=True, positive=True)  # parameters
B = sp.Symbol("B", integer=True, positive=True)  # batch size
beta = sp.Symbol("beta", positive=True)  # batch fraction B/D
gamma = sp.Symbol("gamma", nonnegative=True)  # Cov(w) = gamma (I - kappa 11^T/D)
kappa = sp.Symbol("kappa", real=True)
eta = sp.Symbol("eta", positive=True)  # learning rate
mu = sp.Symbol("mu", real=True)  # momentum
rho = sp.Symbol("rho", nonnegative=True)  # weight decay
lam = sp.Symbol("lambda", nonnegative=True)  # NTK eigenvalue of a mode
lam_other = sp.Symbol("lambdaprime", nonnegative=True)  # and of another
r = sp.Symbol("r", positive=True)  # growth factor per step
sigma = sp.Symbol("sigma", positive=True)  # scale of independent curvature entries
s = sp.Symbol("s", positive=True)  # scale of independent initial residuals
x = sp.Symbol("x", nonnegative=True)  # eta (lambda + rho)
y = sp.Symbol("y", nonnegative=True)  # and of another mode

Theta = sp.MatrixSymbol("Theta", D, D)
M = sp.MatrixSymbol("M", D, D)  # E z z^T
z = sp.MatrixSymbol("z", D, 1)
J = sp.MatrixSymbol("J", D, P)
C = sp.MatrixSymbol("C", D, D)
S = sp.MatrixSymbol("S", P, P)
