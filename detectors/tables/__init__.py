"""What is measured: few tables, each shared by several detectors."""
