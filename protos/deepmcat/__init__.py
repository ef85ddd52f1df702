"""The generated wire contract of DeepMCAT."""
