"""Many files to one table: found, decoded ahead, embedded, written in parts, resumable."""
