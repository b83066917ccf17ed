"""Encoders from texts to logits, trained with any loss of the family, and the SVM baseline."""
