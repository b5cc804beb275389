"""Worlds as text: names for abstract tokens, paraphrased questions and answers, and how they are split."""

from llm_experiments.text.lexicon import DEFAULT_RELATIONS, Lexicon, LexiconError, lexicon
from llm_experiments.text.names import NamesError
from llm_experiments.text.rendering import Example, asked, render, training_examples
from llm_experiments.text.templates import DEV, TEST, TRAIN, Template, TemplateError, templates

__all__ = [
    "DEFAULT_RELATIONS",
    "DEV",
    "TEST",
    "TRAIN",
    "Example",
    "Lexicon",
    "LexiconError",
    "NamesError",
    "Template",
    "TemplateError",
    "asked",
    "lexicon",
    "render",
    "templates",
    "training_examples",
]
