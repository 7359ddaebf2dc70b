"""Files of a network: its configuration and its weights."""
