"""How a model runs and where its file comes from."""
