"""Costs of a model or a training: parameters, operations, memory, hours."""
