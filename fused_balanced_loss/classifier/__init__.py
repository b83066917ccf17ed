"""Linear classifier and loss in one: the logits never exist whole."""
