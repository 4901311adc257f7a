"""The explorer: closed forms that answer while a slider moves, in Jupyter and as a page."""
