"""`python -m reelign.cli`, for launchers such as torchrun."""

from reelign.cli import main

if __name__ == "__main__":
    main()
