"""A SavedModel and photos become rankings. Nothing here knows the network."""
