"""Studies: theory and simulation side by side."""
