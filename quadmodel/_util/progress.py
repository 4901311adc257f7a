"""Progress bars: on a terminal and in a notebook, silent elsewhere."""

from __future__ import annotations

import sys
import warnings
from typing import Any


def progress_bar(total: int, *, what: str, show: bool, initial: int = 0) -> Any:
    """Return a tqdm bar (a context manager with `update`), of which `initial` is done."""
    if show and _in_notebook():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # without ipywidgets the bar is text: good enough
            from tqdm.auto import tqdm

        return tqdm(total=total, desc=what, disable=False, leave=False, initial=initial)
    from tqdm import tqdm as plain

    # disable=None: silent unless standard error is a terminal.
    hidden = None if show else True
    return plain(total=total, desc=what, disable=hidden, leave=False, initial=initial)


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and "IPKernelApp" in shell.config
