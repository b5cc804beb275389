"""One file a figure. Each registers itself with `figures.registry.figure`; adding a file adds the figure."""
