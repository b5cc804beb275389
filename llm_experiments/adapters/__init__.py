"""LoRA adapters: trained, read, written, drawn at random."""
