"""What can be asked of a language model: one folder a domain."""
