"""Monte Carlo of SGD in Numba; no formula shared with the theory."""
