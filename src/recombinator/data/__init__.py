"""Datasets to Parquet tables of crops and keypoints."""
