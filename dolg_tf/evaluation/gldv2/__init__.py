"""Google Landmarks v2: retrieval and recognition, and Kaggle's CSVs."""
