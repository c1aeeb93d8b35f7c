"""What a GPU does with alignlab: attention, steps, TRL beside us, a 4-bit model of 8B, the planner's promises, FSDP2.

    make gpu                                              # every part that this machine can run
    python benchmarks/gpu.py --part trl --profile         # one part, with a profile of a step of each program

Each part runs in a process of its own, in under eight minutes on one GPU, without a network and on data that it makes.
Without a GPU the same code runs tiny on the CPU: that proves the code and says nothing about speed. Tables go to
``--output`` as CSV and markdown, with the machine, the versions, and the optional packages that were missing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

MODULES = {
    "attention": "attention",
    "step": "step",
    "trl": "beside_trl",
    "qlora": "qlora",
    "planner": "planned",
    "fsdp": "sharded",
}
PARTS = tuple(MODULES)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=(*PARTS, "all"), default="all")
    parser.add_argument("--output", type=Path, default=None, help="default: docs/results on a GPU, runs/gpu without")
    parser.add_argument("--repeats", type=int, default=None, help="paired repeats of what is timed")
    parser.add_argument("--only", nargs="+", default=None, metavar="NAME", help="these shapes, architectures or cases")
    parser.add_argument("--seconds", type=float, default=480.0, help="of a part; what does not fit is named and left")
    parser.add_argument("--profile", action="store_true", help="trl: the operations that take most of a step")
    options = parser.parse_args()
    if options.part == "all":
        codes = [_own_process(part) for part in PARTS]
        return max(codes)

    sys.path.insert(0, str(Path(__file__).parent))
    from gpu_parts.common import Bench

    bench = Bench.here(options.output, options.repeats, options.only, time.monotonic() + options.seconds)
    bench.say()
    found = import_module(f"gpu_parts.{MODULES[options.part]}").run(bench, **_extra(options))
    bench.write(options.part, found)
    return 0


def _extra(options: argparse.Namespace) -> dict[str, bool]:
    return {"profile": True} if options.part == "trl" and options.profile else {}


def _own_process(part: str) -> int:
    """Runs one part as this command was given; a part that fails does not keep the others from running."""
    given = [word for word in sys.argv[1:] if word not in ("--part", "all")]
    print(f"\n==== {part}", flush=True)
    return subprocess.run([sys.executable, __file__, *given, "--part", part]).returncode


if __name__ == "__main__":
    sys.exit(main())
