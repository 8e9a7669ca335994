"""The command line."""

from unlock_lens.cli.app import main

__all__ = ["main"]
