"""From built data sets to training batches: layout, sampling, augmentation, streaming."""
