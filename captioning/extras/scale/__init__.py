"""Large data sets: download, shards, several devices."""
