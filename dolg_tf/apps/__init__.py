"""Numbers become something that people look at."""
