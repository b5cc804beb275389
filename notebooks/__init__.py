"""Seven lessons as jupytext percent scripts, what they share, and `python -m notebooks`, which builds all."""
