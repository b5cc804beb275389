"""What a one-layer transformer predicts about merged LoRA adapters."""

__version__ = "0.1.0"
