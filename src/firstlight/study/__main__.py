"""``python -m firstlight.study CONFIG SPLIT [CHECKPOINT]``: one run of a study."""

import sys

from firstlight.study.run import main

if __name__ == "__main__":
    main(*sys.argv[1:])
