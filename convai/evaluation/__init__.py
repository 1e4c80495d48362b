"""The ConvAI2 metrics, by ParlAI or without it."""
