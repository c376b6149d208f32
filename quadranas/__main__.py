"""`python -m quadranas`."""

from quadranas.cli import main

if __name__ == "__main__":
    main()
