"""The parts of ``benchmarks/gpu.py``, each a ``run(bench)`` that returns the rows of its table."""
