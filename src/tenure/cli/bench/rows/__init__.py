"""One module per target, each with ``measure(stage) -> Row``."""
