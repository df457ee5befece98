"""The HTTP service, which answers audio with embeddings, tags and events."""
