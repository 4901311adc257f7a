"""What the derivations are written to: documents and modules of formulas."""
