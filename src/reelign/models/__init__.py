"""What a video model is: a diffusers pipeline seen as four verbs."""
