"""What tokens are for: models over grids of grouped tokens, how predictable tokens are, and compressed files."""
