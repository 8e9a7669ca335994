"""The objects of the README: variants, directions, aligners, hooks."""
