"""Videos to scores: readers, clips, caches, records, leaderboards."""
