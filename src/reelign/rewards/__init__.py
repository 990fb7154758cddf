"""What a video is worth: the reward contract, and the rewards that fulfil it."""
