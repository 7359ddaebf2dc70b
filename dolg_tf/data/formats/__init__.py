"""What encoded photos say of themselves: by plain Python, and by graph ops alone."""
