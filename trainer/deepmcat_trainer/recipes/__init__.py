"""Training recipes, one file each, behind the one loop."""
