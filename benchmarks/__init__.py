"""The fast routes of toytransformer timed against plain NumPy."""
