"""``python -m qunlearn``."""

from qunlearn.cli import main

if __name__ == "__main__":
    main()
