"""Code from Spanish instructions, by an adapter for code from English and one for translation."""
