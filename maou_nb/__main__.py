"`python -m maou_nb` is the command `maou-nb`"
import sys

def main() -> int:
    "The exit code; an engine says `usiok` before the rooms of training are imported"
    from .data.machine import end_at_once
    end_at_once()
    if sys.argv[1:2] == ['usi']:
        from .front.player import usi_main
        return usi_main(sys.argv[2:])
    from .front.cli import main
    return main()

if __name__ == '__main__': sys.exit(main())
