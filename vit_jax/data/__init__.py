"""Sources, host transforms and the pipeline from a source to global batches."""
