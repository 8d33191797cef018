"""`python -m bench.sink`."""

from bench.sink.command import main

if __name__ == "__main__":
    main()
