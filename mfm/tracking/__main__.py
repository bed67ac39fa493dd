"""``python -m mfm.tracking FOLDER DIRECTORY``: sends the journal of a run while the run lasts; started by mfm."""

import sys
from pathlib import Path

from mfm.tracking.sending import follow

if __name__ == "__main__":
    sys.exit(follow(Path(sys.argv[1]), sys.argv[2]))
