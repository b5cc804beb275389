"""What can be said of a library of adapters before it is merged, and of merges before they are measured."""
