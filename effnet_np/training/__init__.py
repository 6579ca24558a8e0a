"""Learning: the derivative of each operation, the chain rule, optimisers, and a network fine-tuned on photographs of one's own."""
