"""The Open Inference Protocol: the same engine for the clients that other inference servers have.

A session is called a sequence here, and its id comes from the caller. A request's way: `requests` reads
what it asks for, `sequences` finds or begins its session, `codec` reads its tensors and later writes its
answer, `stream` and `servicer` are the two ways in.
"""
