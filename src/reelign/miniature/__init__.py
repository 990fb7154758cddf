"""A complete small Wan pipeline in a procedural world whose videos can be judged exactly."""
