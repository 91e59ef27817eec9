"""Checkpoints from the Hugging Face hub: what is needed, what is here, what is downloaded and verified."""
