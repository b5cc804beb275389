"""What the page says of two-hop questions: what composes and why, and the theory case by case."""
