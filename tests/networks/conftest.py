"""Tests of networks need PyTorch."""

import pytest


@pytest.fixture(autouse=True)
def needs_torch(request):
    """Skip with a reason where PyTorch is not installed."""
    if request.module.__name__.split(".")[-1] != "test_without_torch":
        pytest.importorskip("torch", reason="quadmodel[networks] is not installed")
