"""Talks to a DeepMCAT server; needs neither torch nor numpy."""
