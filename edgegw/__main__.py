"""`python -m edgegw`: the same as the console script."""

from edgegw.cli import main

if __name__ == "__main__":
    main()
