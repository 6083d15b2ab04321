"""What happened in a run: as data, in words, as figures and as a picture."""
