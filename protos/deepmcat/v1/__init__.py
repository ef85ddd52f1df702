"""Version 1 of the wire contract: generated from categorization.proto by `make protos`."""
