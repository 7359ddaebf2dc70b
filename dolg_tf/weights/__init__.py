"""Other people's weights become ours."""
