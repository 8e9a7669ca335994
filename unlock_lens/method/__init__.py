"""The paper: every formula, on torch alone."""
