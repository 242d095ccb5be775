"""The Recurra server: recurrent networks over gRPC, with their memory kept on the server."""

import os

# The gRPC core prints lines of its own, about failures that are also raised. It reads this once, when imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
