"""Questions for other evaluation harnesses: the items that an experiment asks, read by our own scorers."""
