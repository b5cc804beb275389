"""Steps computed in order, each once, whatever interrupts it; and the folder that keeps their results."""
