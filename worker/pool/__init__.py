"""The processes of a node: which there are, how they are kept running, what they say to each other.

Start at `node.py`; a worker process is `worker.py`, and `slots.py` the streams between them.
"""
