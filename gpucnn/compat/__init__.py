"""Names under which programs written for other projects run: one module a project."""
