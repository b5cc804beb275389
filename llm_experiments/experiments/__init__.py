"""The named experiments, and how large a measurement is."""
