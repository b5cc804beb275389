"""Base models: found, loaded, put on a device, spoken to."""
