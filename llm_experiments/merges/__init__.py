"""Libraries of adapters merged or routed inside a model."""
