"""Where data comes from and where it goes: the shell around `detectors`."""
