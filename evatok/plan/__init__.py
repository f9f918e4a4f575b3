"""What a model or a training costs: parameters, operations, memory, hours."""
