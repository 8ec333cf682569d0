"""Files in, one table out: Parquet rows of crop, points, and where each came from."""
