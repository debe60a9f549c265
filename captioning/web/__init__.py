"""A page for this machine's browser: drop a photograph on it, read its caption."""
