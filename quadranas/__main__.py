"""`python -m quadranas`."""

from quadranas.cli.app import main

if __name__ == "__main__":
    main()
