"""Speed and memory of quadmodel, beside JAX and NumPy: `python -m benchmarks`."""
