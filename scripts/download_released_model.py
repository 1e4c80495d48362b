"""Put the released fine-tuned model into a folder: python scripts/download_released_model.py models"""

import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from convai.errors import report_user_errors  # noqa: E402
from convai.io.download import fetch_archive  # noqa: E402
from convai.io.pretrained import RELEASED_MODEL_URL  # noqa: E402


@report_user_errors
def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(f"usage: python {sys.argv[0]} FOLDER")
    advice = "In a Docker build, --build-arg PRETRAINED=0 leaves the model out."
    with tempfile.TemporaryDirectory() as cache:  # the folder is what is kept, not a second copy in the user's cache
        os.environ["CONVAI_CACHE"] = cache
        shutil.copytree(fetch_archive(RELEASED_MODEL_URL, advice=advice), sys.argv[1], dirs_exist_ok=True)
    print(f"the released model is in {sys.argv[1]}")


if __name__ == "__main__":
    main()
