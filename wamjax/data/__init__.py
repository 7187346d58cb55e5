"""Episodes on disk and the batches made of them: `episode`, `video`, `store`, `readers`, `statistics`, `pipeline`."""
