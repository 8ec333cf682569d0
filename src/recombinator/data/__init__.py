"""From datasets and points files to tables of crops and keypoints."""
