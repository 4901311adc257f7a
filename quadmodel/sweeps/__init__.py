"""Sweeps: units of work that may be stopped, resumed, and spread over cores and machines.

Knows nothing of what is computed: a unit is a function of what its sweep was asked for.
"""
