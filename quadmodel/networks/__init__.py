"""The noise kernel norm and its neighbours, measured on networks of PyTorch.

Loaded on first use. PyTorch comes with ``pip install 'quadmodel[networks]'``.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
