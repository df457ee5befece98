"""Many files to one table: inputs, a job that can be resumed, its finished parts, the table."""
