"""The two stages in two runs, maybe on two machines: a sketch as data and as a file, and what continues from it."""
