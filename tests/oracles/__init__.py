"""Brute force: slow, obvious computations that the package must agree with."""
