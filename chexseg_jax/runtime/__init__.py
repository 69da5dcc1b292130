"""Stage folders, atomic writes, device meshes, process shards, CPU-only variants."""
