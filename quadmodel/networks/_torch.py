"""PyTorch, or one line that says how to get it."""

from __future__ import annotations

try:
    import torch
except ImportError:
    raise ImportError(
        "quadmodel.networks needs PyTorch: pip install 'quadmodel[networks]'"
    ) from None

__all__ = ["torch"]
