"""From a file of points and its images to a working localizer."""
