"""Pictures of rankings, matches and maps."""
