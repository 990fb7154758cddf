"""The one sampler and its noise."""
