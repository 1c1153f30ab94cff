"""The terminal on which commands print what they found."""

from rich.console import Console

console = Console(markup=False, emoji=False)
"""Names of classes, arms and files are data: nothing in them is markup."""
