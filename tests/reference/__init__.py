"""The slow, plain reference of vLLM's V1 scheduler, and the recorded decisions it is checked against."""
