"""Using and exporting a finished model."""
