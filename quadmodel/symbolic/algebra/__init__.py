"""Algebra of tensors with indices: polynomials, averages, recognition of matrices."""
