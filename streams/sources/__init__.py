"""Where recorded events come from: files, their bytes, their records."""
