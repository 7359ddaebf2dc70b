"""Rankings become numbers."""
