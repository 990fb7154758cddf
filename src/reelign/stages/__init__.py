"""The stages of post-training, one file each."""
