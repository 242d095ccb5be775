"""The engine: sessions, steps and batches, decided without any input or output.

It knows neither gRPC nor asyncio nor ONNX Runtime nor the time of day: requests
come in as method calls with the time as an argument, model calls go out as
`Batch` objects that somebody runs, and answers leave through each step's `waiter`.
Everything runs on one thread.
"""
