"""The HTTP service: audio in, embeddings and tags out."""
