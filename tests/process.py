"""One process of a run: `python tests/process.py DEVICES ARGUMENTS...`, on forced CPU devices."""

import sys

import jax

from chexseg_jax import artefacts, pseudo
from experiments.chexseg import main

if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", int(sys.argv[1]))
    artefacts.SHARD = pseudo.SHARD = 8  # few images are then several shards
    main(sys.argv[2:])
