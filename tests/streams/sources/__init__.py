"""Files and what they hold."""
