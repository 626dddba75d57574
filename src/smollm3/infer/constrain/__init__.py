"""Constrained decoding: grammars over an answer, masks over the vocabulary, thinking budgets."""
