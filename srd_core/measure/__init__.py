"""Measure Pair: how near the render is to the sketch on the sketch's own way, and what settings that suggests."""
