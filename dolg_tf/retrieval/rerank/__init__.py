"""Rankings -> better rankings."""
