"""twowalls: a discrete-event simulator of multi-GPU LLM inference."""

__version__ = "0.1.0"
