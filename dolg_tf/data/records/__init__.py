"""Photos -> TFRecords of DELG's schema, and their check."""
