"""The command tree and the one composition root."""
