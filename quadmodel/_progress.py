"""Progress bars: on a terminal and in a notebook, silent elsewhere."""

from __future__ import annotations

import sys
from typing import Any


def progress_bar(total: int, *, what: str, show: bool) -> Any:
    """Return a tqdm bar (a context manager with `update`)."""
    if _in_notebook():
        from tqdm.auto import tqdm

        return tqdm(total=total, desc=what, disable=not show, leave=False)
    from tqdm import tqdm as plain

    # disable=None: silent unless standard error is a terminal.
    return plain(total=total, desc=what, disable=None if show else True, leave=False)


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and "IPKernelApp" in shell.config
