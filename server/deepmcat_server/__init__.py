"""The gRPC server: transport around the core."""
