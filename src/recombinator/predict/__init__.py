"""Prediction: from photographs and videos to keypoints in image coordinates."""
