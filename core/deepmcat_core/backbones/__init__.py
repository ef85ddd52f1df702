"""The networks, one a file: what stands between normalised pixels and the projection. encoder.py has their names."""
