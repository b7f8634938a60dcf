"""Speed and quality against named alternatives; each module is a command that prints a table."""
