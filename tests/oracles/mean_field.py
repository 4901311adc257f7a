"""Mean-field theory as written: every mode's response to every force, propagated step by step.

x of a mode with NTK eigenvalue lam is sqrt(D) times its parameter, y = x + ahead (x - x before) is
where the gradient is taken. A linear form holds the coefficients of z0, xi(s), phi(s), nu(s).
"""

import numpy as np


def solve(modes, steps, *, rate, momentum=0.0, ahead=0.0, decay=0.0, noise, strength, density):
    """Return loss, |y|^2, C and Z; `modes` holds (lam, share, energy, c), `noise` (gamma, kappa/D).

    Independent of how the package solves the same equations: no resolvents, no sums shared by
    modes, D - P parameters that see no residual as a mode of their own.
    """
    gamma, kappa = noise
    sigma2 = strength * density
    T = steps + 1
    size = 1 + 3 * T
    xi, phi, nu = (slice(1 + k * T, 1 + (k + 1) * T) for k in range(3))
    kinds = [(*m, True) for m in modes] + [(0.0, 1 / density - 1, 0.0, 0.0, False)]
    x = [np.zeros((T + 1, size)) for _ in kinds]
    y = [np.zeros((T, size)) for _ in kinds]
    z = [np.zeros((T, size)) for _ in kinds]
    cov_phi, cov_nu = np.zeros((T, T)), np.zeros((T, T))
    cov_xi = [np.zeros(T) for _ in kinds]
    C, Z, G, u = (np.zeros((T, T)) for _ in range(4))
    loss = np.full(T, np.nan)

    def mean(a, b, k):
        _, _, energy, c, _ = kinds[k]
        total = energy * a[0] * b[0] + a[xi] @ (cov_xi[k] * b[xi]) + a[nu] @ cov_nu @ b[nu]
        return total + c * (a[phi] @ cov_phi @ b[phi])

    for t in range(T):
        for k in range(len(kinds)):
            before = x[k][t - 1] if t else 0 * x[k][0]
            y[k][t] = x[k][t] + ahead * (x[k][t] - before)
        for s in range(t):
            u[t, s] = density * sum(kinds[k][1] * y[k][t][nu][s] for k in range(len(kinds)))
        for s in range(t + 1):
            C[t, s] = C[s, t] = sum(
                kinds[k][1] * mean(y[k][t], y[k][s], k) for k in range(len(kinds))
            )
            cov_phi[t, s] = cov_phi[s, t] = 0.5 * sigma2 * C[t, s] ** 2
        level = 0.0
        for k, (lam, share, _, c, has_data) in enumerate(kinds):
            if not has_data:
                continue
            z[k][t] = np.sqrt(lam) * y[k][t]
            z[k][t][0] += 1
            z[k][t][1 + T + t] += 1  # phi(t)
            for s in range(t):
                zeta = z[k][s].copy()
                zeta[1 + s] += 1
                z[k][t] -= rate * strength * c * C[t, s] * u[t, s] * zeta
            level += share * mean(z[k][t], z[k][t], k)
        loss[t] = level / 2
        zetas = []
        for k in range(len(kinds)):
            own = mean(z[k][t], z[k][t], k)
            cov_xi[k][t] = gamma * (level - kappa * own) if kinds[k][4] else 0.0
            rows = z[k][: t + 1].copy()
            for s in range(t + 1):
                rows[s, 1 + s] += 1
            zetas.append(rows)
        for s in range(t + 1):
            data = [k for k in range(len(kinds)) if kinds[k][4]]
            Z[t, s] = Z[s, t] = sum(
                kinds[k][1] * kinds[k][3] * mean(zetas[k][t], zetas[k][s], k) for k in data
            )
            G[t, s] = sum(kinds[k][1] * kinds[k][3] * z[k][t][1 + T + s] for k in data)
            cov_nu[t, s] = cov_nu[s, t] = rate**2 * sigma2 * Z[t, s] * C[t, s]
        for k, (lam, *_) in enumerate(kinds):
            before = x[k][t - 1] if t else 0 * x[k][0]
            following = x[k][t] + momentum * (x[k][t] - before) - rate * decay * y[k][t]
            following = (
                following - rate * np.sqrt(lam) * zetas[k][t] - rate * sigma2 * C[t, t] * y[k][t]
            )
            for s in range(t):
                memory = rate**2 * strength * Z[t, s] * u[t, s] - rate * sigma2 * G[t, s] * C[t, s]
                following = following + memory * y[k][s]
            following[1 + 2 * T + t] += 1
            x[k][t + 1] = following
    return loss, np.diagonal(C).copy(), C, Z
