"""Serve the page of `evatok app`, on this machine or as a Hugging Face Space.

A Space (https://huggingface.co/docs/hub/spaces) is this folder: app.py, requirements.txt and the
README.md whose first lines configure it. On your own machine: `python examples/space/app.py`.
"""

import os
import sys

from evatok.cli.app import main

if __name__ == "__main__":
    host = os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")  # a Space sets it to 0.0.0.0
    port = os.environ.get("GRADIO_SERVER_PORT", "7860")
    model = os.environ.get("EVATOK_MODEL", "nano")
    sys.exit(main(["app", "--model", model, "--host", host, "--port", port]))
