"""Implementations of the loss with one signature each: ``value``, ``gradient`` and ``value_and_gradient``."""
