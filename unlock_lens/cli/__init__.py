"""The command line."""

from unlock_lens.errors import require

require("cli", "rich", "typer")

from unlock_lens.cli.app import main  # noqa: E402  it imports what is asked for above

__all__ = ["main"]
