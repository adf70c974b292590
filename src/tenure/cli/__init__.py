"""The command tree and the one composition root."""


def main() -> None:
    """The program ``tenure``."""
    # Imported here: the witness lives in this package, too, and must start fast and small.
    from tenure.cli.tree import tree

    tree(prog_name="tenure")
