"""One process of a run: `python tests/process.py DEVICES ARGUMENTS...`, on forced CPU devices."""

import sys
from functools import partial

import jax

from chexseg_jax.pseudolabels import storage
from chexseg_jax.runtime import stage_folder
from experiments.chexseg import main

if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
    # A lost process is to be missed sooner than after JAX's 100 seconds.
    jax.distributed.initialize = partial(jax.distributed.initialize, heartbeat_timeout_seconds=20)
    stage_folder.SHARD = storage.SHARD = 8  # few images are then several shards
    main(sys.argv[2:])
