"""The algorithm: when to hand over, how to hand over, and what is reported. Never imports the node layer."""
