"`python -m maou_nb` is the command `maou-nb`"
import sys

from .front.cli import main

if __name__ == '__main__': sys.exit(main())
