"""The trainer's commands: one module each, imported on use."""
