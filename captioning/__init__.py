"""Image captioning with a frozen CNN, FastText embeddings and a merge-decoder."""
