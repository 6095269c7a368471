"""Other engines on the same work, each in an environment of its own: what they pin is not what we pin."""
