"""Word problems in numbers, easy ones taught and harder ones asked: GSM-Symbolic, GSM8K, problems of our own.

Import from the modules: templates, data, ladder, scorer, programs, task.
"""
