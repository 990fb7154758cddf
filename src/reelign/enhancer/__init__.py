"""Prompt enhancement: a language model that says the user's words as the generator likes them, and the guard."""
