"""`python -m scache`."""

from scache.command import main

main()
