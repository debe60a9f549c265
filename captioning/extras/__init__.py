"""What the four steps can do without; the core imports nothing here at the top of a file."""
