"""Worlds as text: names for abstract tokens, paraphrased questions and answers, and how they are split.

Import from the modules: templates, names, lexicon, rendering, splits, export.
"""
