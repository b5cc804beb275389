"""Worlds as text: names for abstract tokens, paraphrased questions and answers, and how they are split."""
