"""The one kind of error a user is meant to read."""


class ReelignError(Exception):
    """What is wrong, where, and what to do about it.

    The command line prints the message alone and exits with status 1; every other exception is a defect
    of reelign and keeps its traceback.
    """
