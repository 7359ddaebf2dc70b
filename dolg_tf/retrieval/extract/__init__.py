"""SavedModel and photos -> descriptor sets."""
