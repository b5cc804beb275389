"""A small model that this package pretrains itself, on a world it knows all of."""
