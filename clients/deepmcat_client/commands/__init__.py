"""The commands that the client itself has; cli.py lists all."""
