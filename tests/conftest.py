"""Triton's interpreter runs the kernels on CPU tensors; it has to be asked for before anything imports them.

So when this file is imported, not in a hook: the conftest.py files of the folders below import the engine. `make
test-gpu`, which runs the compiled kernels, sets TRITON_INTERPRET=0.
"""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "1")
