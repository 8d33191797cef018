"""`python -m bench`: the same as `postrio bench`."""

from bench.command import main

if __name__ == "__main__":
    main()
