"""Training sequences: shards on disk, packed batches."""
