"""The peers: each in an environment of its own, with what it needs to keep the states of sessions."""
