"""Learning: the derivative of each operation, the chain rule, optimisers, and fine-tuning on photographs of one's own."""
