"""Data: image data sets, their splits, preprocessing, augmentation and batches."""
