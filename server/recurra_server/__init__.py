"""The Recurra server: recurrent networks over gRPC, with their memory kept on the server."""
