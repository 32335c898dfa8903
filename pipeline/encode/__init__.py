"""One shard, end to end."""
