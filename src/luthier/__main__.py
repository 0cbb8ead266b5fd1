"""``python -m luthier``."""

from luthier.cli.main import main

if __name__ == "__main__":
    main()
