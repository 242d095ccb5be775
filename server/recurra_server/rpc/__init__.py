"""The gRPC edge: decode, await the engine, encode, map errors. The only place that knows protobuf."""
