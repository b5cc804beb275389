"""What a text answers: one module a kind of answer."""
