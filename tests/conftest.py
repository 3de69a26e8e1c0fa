"""One thread for torch: the models here are small, and spinning threads on a busy machine cost minutes."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
