"""Answers: what people call on their pictures."""
