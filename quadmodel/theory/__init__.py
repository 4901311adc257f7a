"""Closed-form predictions; NumPy and SciPy only, no formula shared with the simulation."""
