"""Questions put to a model, answers read, and what follows from them statistically."""
