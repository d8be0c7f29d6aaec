"""`yolact-infer merge`: the outputs of shards, and rows in Parquet, joined to the outputs of one run."""
