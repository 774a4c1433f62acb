"""``python -m monai_jsm`` is the program ``monai-jsm``."""

import sys

from monai_jsm.apps.command_line import main

if __name__ == "__main__":
    sys.exit(main())
