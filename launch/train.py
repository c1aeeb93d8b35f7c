"""The command ``alignlab train`` for launchers that start a script: ``deepspeed launch/train.py CONFIG.yaml ...``."""

import sys

from alignlab.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["train", *sys.argv[1:]]))
