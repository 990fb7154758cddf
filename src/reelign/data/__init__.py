"""Footage to clips to latents to batches. Curation imports without torch."""
