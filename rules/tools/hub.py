"""Will bring a checkpoint from Hugging Face's hub; today it only says that it cannot yet.

    hub.py --repository ORG/NAME --revision REVISION --out DIR

So an entry with a `hf:` source can be planned, checked and rendered, and building it stops here, before anything costs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main() -> int:
    """Exit 1, always."""
    parser = argparse.ArgumentParser(description="bring a checkpoint from the hub")
    parser.add_argument("--repository", required=True, metavar="ORG/NAME")
    parser.add_argument("--revision", required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    args = parser.parse_args()
    print(
        f"error: {args.repository} cannot be downloaded: hf: sources can only be planned so far\n"
        f"    revision  {args.revision}\n"
        '    hint: download it by hand (hf download) and write source = "file:FOLDER"',
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
