"""Probability laws: of a curvature, of the NTK's eigenvectors, of the initial residual."""

from quadmodel.laws import curvature, eigenvectors, residuals

__all__ = ["curvature", "eigenvectors", "residuals"]
